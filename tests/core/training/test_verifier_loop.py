"""Training on verdicts: the ranking terms in closed form, the loss without ranking, memory-saving form, resume."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from core.config.schema import ModelConfig, TrainConfig
from core.data.dataset import EncodedDataset
from core.data.encode import IGNORE, Encoded
from core.errors import ConfigError, DataError
from core.inference.request import SamplingParams
from core.training.verifier_loop import GroupCollator, LoopSettings, Scored, rank_term, ranked_trainer


def settings(loss="rank_margin", **more):
    return LoopSettings(loss=loss, **more)


def test_the_margin_term_is_the_released_one():
    means, scores = torch.tensor([-1.0, -2.0, -1.5]), torch.tensor([1.0, 0.0, 0.9])
    p = [math.exp(m) / sum(math.exp(x) for x in (-1.0, -2.0, -1.5)) for m in (-1.0, -2.0, -1.5)]
    expected = max(0, 0.3 - (p[0] - p[1])) + max(0, 0.3 - (p[2] - p[1]))
    assert float(rank_term(means, scores, settings())) == pytest.approx(expected, abs=1e-6)


def test_the_other_terms():
    means, scores = torch.tensor([-1.0, -2.0]), torch.tensor([0.0, 1.0])
    assert float(rank_term(means, scores, settings("rank_log", margin=0.3))) == pytest.approx(1.3)
    base = torch.tensor([-1.5, -1.5])
    dpo = -math.log(1 / (1 + math.exp(-0.1 * ((-2 + 1.5) - (-1 + 1.5)))))
    assert float(rank_term(means, scores, settings("dpo", beta=0.1), base)) == pytest.approx(dpo, abs=1e-6)
    for loss in ("none", "best_of"):
        assert float(rank_term(means, scores, settings(loss))) == 0


def test_scores_that_are_close_rank_nothing_and_pull_nothing():
    means = torch.tensor([-1.0, -2.0], requires_grad=True)
    term = rank_term(means, torch.tensor([1.0, 0.85]), settings())
    term.backward()
    assert term.item() == 0 and means.grad.abs().sum() == 0


def test_the_better_answer_gains_probability():
    means = torch.tensor([-1.0, -1.2, -1.1], requires_grad=True)
    rank_term(means, torch.tensor([0.0, 1.0, 0.5]), settings()).backward()
    assert means.grad[1] < 0 < means.grad[0]


def test_preferred_by_a_token_in_a_hundred_is_nearly_settled():
    """Means a token are small: two answers of 100 tokens whose odds moved e¹⁰⁰ to 1 differ by one nat a token."""
    means, scores = torch.tensor([-0.5, 0.5], requires_grad=True), torch.tensor([0.0, 1.0])
    rank_term(means, scores, settings("dpo"), torch.zeros(2)).backward()
    assert means.grad.abs().max() < 0.05


def test_bad_settings_are_errors():
    with pytest.raises(ConfigError, match="rank_margn"):
        LoopSettings(loss="rank_margn")
    with pytest.raises(ConfigError):
        LoopSettings(samples=0)


# ---- on a model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    from core.models.load import load_model
    from core.models.tokenizer import train_bpe

    tokenizer = train_bpe(["module a; endmodule wire reg"], 300)
    return tokenizer, lambda: load_model(ModelConfig(preset="tiny"), tokenizer, seed=0)


def rows(tokenizer, count=4):
    made = []
    for number in range(count):
        prompt, answer = tokenizer(f"module {number};")["input_ids"], tokenizer("wire a;" * (1 + number))["input_ids"]
        answer = answer + [tokenizer.eos_token_id]
        made.append(Encoded(prompt + answer, [IGNORE] * len(prompt) + answer))
    return made


def trainer_of(
    parts, folder, loop, score=lambda pairs: [len(text) % 5 / 4 for _, text in pairs], sizes=None, backend=None, **train
):
    from core.config.schema import Recipe
    from core.training.arguments import training_arguments

    tokenizer, make = parts
    recipe = Recipe(app="rtl", train=TrainConfig(lr=1e-3, **train))
    sizes = {"micro": 2, "accumulation": 1, "steps": 6, "sequences_a_step": 2, **(sizes or {})}
    cls = ranked_trainer(loop, tokenizer, score, None, folder / "scored")
    return cls(
        model=make(), args=training_arguments(recipe, sizes, folder / "out", "cpu"),
        train_dataset=EncodedDataset(rows(tokenizer)), train_config=recipe.train, backend=backend,
    )  # fmt: skip


def batch_of(trainer, tokenizer):
    answers = [Scored(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id], text, score)
               for text, score in (("reg b;", 0.0), ("wire a; reg", 0.9), ("x", 0.4))]  # fmt: skip
    trainer.grouped.candidates = [answers for _ in range(4)]
    return trainer.data_collator([trainer.grouped[0], trainer.grouped[3]])


def gradients(trainer, batch):
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, {**batch}, num_items_in_batch=torch.tensor(9)).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_one_sequence_at_a_time_gives_the_same_gradient(parts, tmp_path):
    found = []
    for split in (False, True):
        trainer = trainer_of(parts, tmp_path, settings(split=split, weight=2.0))
        trainer.model.eval()
        found.append(gradients(trainer, batch_of(trainer, parts[0])))
    assert found[0].norm() > 0
    assert (found[0] - found[1]).norm() <= 1e-5 * found[0].norm()


def test_without_ranking_it_is_supervised_training(parts, tmp_path):
    trainer = trainer_of(parts, tmp_path, settings("none"))
    batch = batch_of(trainer, parts[0])
    loss = trainer.compute_loss(trainer.model, {**batch}, num_items_in_batch=(batch["labels"] != IGNORE).sum())
    from core.training.trainer import SupervisedTrainer

    plain = GroupCollator(0).inner(rows(parts[0])[0:4:3])
    same = SupervisedTrainer.compute_loss(
        trainer, trainer.model, {**plain}, num_items_in_batch=(plain["labels"] != IGNORE).sum()
    )
    assert float(loss) == pytest.approx(float(same), rel=1e-5)
    assert (batch["labels"] != IGNORE).sum() == (plain["labels"] != IGNORE).sum()


def test_it_samples_scores_trains_and_never_samples_twice(parts, tmp_path):
    asked = []

    def score(pairs):
        asked.append(list(pairs))
        return [0.5] * len(asked[-1])

    loop = settings(iterations=2, samples=2, sampling=SamplingParams(max_new_tokens=6, temperature=1.0))
    trainer = trainer_of(parts, tmp_path, loop, score, epochs=3)
    trainer.train()
    files = sorted((tmp_path / "scored").glob("*.jsonl"))
    assert [f.name for f in files] == ["iteration-0.jsonl", "iteration-1.jsonl"] and len(asked) == 2
    drawn = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert len(drawn) == 4 and all(len(row) == 2 for row in drawn)
    for candidate in (c for row in drawn for c in row):
        assert candidate["score"] == (0.0 if candidate["cut"] else 0.5)
    again = trainer_of(parts, tmp_path, loop, score, epochs=3)
    again.begin(1)
    assert len(asked) == 2 and again.grouped.candidates[0][0].text == json.loads(
        files[1].read_text().splitlines()[0])[0]["text"]  # fmt: skip
    files[0].write_text("")
    with pytest.raises(DataError, match="other data"):
        again.begin(0)


def test_few_rows_iterate_as_often_as_asked(parts, tmp_path):
    loop = settings(iterations=3, samples=1, sampling=SamplingParams(max_new_tokens=2, temperature=1.0))
    trainer = trainer_of(parts, tmp_path, loop, sizes={"accumulation": 3, "steps": 3}, epochs=3)
    trainer.train()
    assert len(list((tmp_path / "scored").glob("*.jsonl"))) == 3


def test_the_rate_runs_through_its_schedule_in_every_iteration(parts, tmp_path):
    from core.training.schedule import schedule

    sampling = SamplingParams(max_new_tokens=2, temperature=1.0)
    loop = settings(iterations=3, samples=1, own_schedule=True, sampling=sampling)
    trainer = trainer_of(parts, tmp_path, loop, epochs=3)
    scheduler = trainer.create_scheduler(6, torch.optim.SGD(trainer.model.parameters(), lr=1.0))
    one = schedule(trainer.train_config, 2)
    found = [float(scheduler.lr_lambdas[0](step)) for step in range(6)]
    assert found == [one(0), one(1)] * 3 and found[0] > found[1]


def test_a_scorer_says_what_its_scores_mean(parts, tmp_path):
    class Scores:
        def __call__(self, pairs):
            return [0.01 if i % 2 else 0.75 for i, _ in enumerate(pairs)]

        def facts(self, scores):
            return {"compiles": sum(s > 0.01 for s in scores) / len(scores)}

    sampling = SamplingParams(max_new_tokens=6, temperature=1.0)
    trainer = trainer_of(parts, tmp_path, settings(iterations=1, samples=2, sampling=sampling), Scores())
    told = trainer.begin(0)
    drawn = [c.score for row in trainer.grouped.candidates for c in row]
    assert told["compiles"] == sum(s > 0.01 for s in drawn) / 8 and told["mean_score"] == sum(drawn) / 8


def test_a_text_is_verified_once_while_the_model_samples_on(parts, tmp_path, monkeypatch):
    from core.inference.engines.hf import HfEngine
    from core.inference.request import Output

    sampled, asked = [], []
    texts = {0: "a", 1: "b", 2: "a", 3: "c"}

    def generate(engine, requests, sampling):
        sampled.append(len(requests))
        return [Output([5], texts[n % 4], None, "length" if texts[n % 4] == "c" else "stop")
                for n in range(len(requests))]  # fmt: skip

    def score(pairs):
        for pair in pairs:
            asked.append((pair, len(sampled)))
            yield 1.0 if pair[1] == "a" else 0.25

    monkeypatch.setattr(HfEngine, "generate", generate)
    trainer = trainer_of(parts, tmp_path, settings(samples=4, batch=8), score)
    told = trainer.begin(0)
    assert sampled == [8, 8] and {when for _, when in asked} == {1, 2}
    assert len(asked) == 8 and len({pair for pair, _ in asked}) == 8
    assert told["passed"] == 0.5 and told["cut"] == 0.25
    assert [c.score for c in trainer.grouped.candidates[0]] == [1.0, 0.25, 1.0, 0.0]
    trainer.begin(1)
    assert len(asked) == 8


def test_ranking_multiplies_or_adds(parts, tmp_path):
    found = {}
    for loss in ("none", "rank_margin", "rank_log"):
        trainer = trainer_of(parts, tmp_path, settings(loss, weight=2.0, margin=0.3))
        trainer.model.eval()
        batch = batch_of(trainer, parts[0])
        count = (batch["labels"] != IGNORE).sum()
        found[loss] = float(trainer.compute_loss(trainer.model, {**batch}, num_items_in_batch=count))
        sums, counts = trainer._logprobs(trainer.model, {k: batch[k] for k in ("input_ids", "attention_mask")},
                                         batch["targets"])  # fmt: skip
        ranks = [
            2.0 * float(rank_term((sums / counts)[batch["groups"] == g], batch["scores"][batch["groups"] == g],
                                  trainer.settings))
            for g in (0, 1)
        ]  # fmt: skip
        first = [int((batch["groups"] == g).nonzero()[0]) for g in (0, 1)]
        if loss == "rank_margin":
            expected = sum(-float(sums[i]) * (1 + r) for i, r in zip(first, ranks)) / int(count)
            assert found[loss] == pytest.approx(expected, rel=1e-5)
        if loss == "rank_log":
            expected = found["none"] + sum(int(counts[i]) * r for i, r in zip(first, ranks)) / int(count)
            assert found[loss] == pytest.approx(expected, rel=1e-5)


def test_packed_rows_are_refused(parts, tmp_path):
    tokenizer, make = parts
    cls = ranked_trainer(settings(), tokenizer, lambda pairs: [])
    with pytest.raises(ConfigError, match="packed"):
        cls(model=make(), train_dataset=EncodedDataset(rows(tokenizer), 64), args=None, train_config=TrainConfig())


def test_the_guard_on_diversity_stops(parts, tmp_path):
    loop = settings(iterations=1, samples=2, unique_least=1.1,
                    sampling=SamplingParams(max_new_tokens=2, temperature=1.0))  # fmt: skip
    trainer = trainer_of(parts, tmp_path, loop)
    trainer.train()
    assert trainer.state.global_step <= 1


def test_copies_rank_nothing_and_take_no_share(parts, tmp_path):
    tokenizer, _ = parts
    trainer = trainer_of(parts, tmp_path, settings())
    row = trainer.grouped.rows[0]
    reference = [label for label in row.labels if label != IGNORE]
    other = tokenizer("reg b;")["input_ids"]
    drawn = [Scored(reference, "r", 1.0), Scored(other, "o", 0.5), Scored(other, "o", 0.5), Scored([], "", 0.0)]
    trainer.grouped.candidates = [drawn] * 4
    assert trainer.grouped[0].scores == (1.0, 0.5) and trainer.grouped[1].scores == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("params", ["fp32", "bf16"])
def test_restarting_takes_the_first_weights_and_its_own_schedule(parts, tmp_path, params):
    from core.config.schema import BackendConfig
    from core.training.masters import MasterAdamW

    sampling = SamplingParams(max_new_tokens=2, temperature=1.0)
    loop = settings(iterations=2, samples=1, restart=True, kl_limit=100.0, sampling=sampling)
    backend = BackendConfig()
    backend.precision.params = params
    trainer = trainer_of(parts, tmp_path, loop, backend=backend, epochs=2)
    seen = []
    real = type(trainer)._start_again

    def start_again(self, weights):
        moved = any(not torch.equal(p.detach().cpu(), weights[n]) for n, p in self.model.named_parameters())
        real(self, weights)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        assert isinstance(inner, MasterAdamW) is (params == "bf16")
        pairs = inner._pairs() if params == "bf16" else []
        assert not (inner.inner.state if pairs else inner.state)
        assert all(torch.equal(p.detach().float(), copy) for p, copy in pairs)
        seen.append((moved, [g["lr"] for g in inner.param_groups]))

    type(trainer)._start_again = start_again
    first = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    ((moved, rates),) = seen
    assert moved and rates[0] > 0
    assert all(torch.equal(trainer.first[n], p) for n, p in first.items())


def test_a_run_resumed_within_an_iteration_is_not_restarted(parts, tmp_path):
    sampling = SamplingParams(max_new_tokens=2, temperature=1.0)
    loop = settings(iterations=2, samples=1, restart=True, sampling=sampling)
    found = []
    for epoch in (2.0, 2.5, 3.0):
        trainer = trainer_of(parts, tmp_path / str(epoch), loop, sizes={"steps": 8}, epochs=4)
        trainer.create_optimizer()
        trainer._start_again = lambda weights, epoch=epoch: found.append(epoch)
        state = SimpleNamespace(max_steps=8, epoch=epoch)
        callback = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "_Iterations")
        callback.on_epoch_begin(trainer.args, state, SimpleNamespace(), train_dataloader=[0, 1])
    assert found == [2.0]


def test_scores_of_verdicts():
    from apps.rtl.methods.itertl import Scorer, score_of
    from apps.rtl.verdict import RtlVerdict

    example = SimpleNamespace(reference="module a; wire b; endmodule")
    assert score_of(RtlVerdict("."), example) == 1
    assert score_of(RtlVerdict("S"), example) == 0
    assert score_of(RtlVerdict("S", code="module"), example) == 0.01 == score_of(RtlVerdict("X", code="x"), example)
    half = RtlVerdict("R", 50, 100, "module a; endmodule")
    assert 0.6 < score_of(half, example) < 0.7
    nearly = RtlVerdict("R", 1, 10_000, "module a; endmodule")
    assert 1 - score_of(nearly, example) > 0.2, "a nearly right answer is ranked below a right one at the default gap"
    assert 0.5 < score_of(half, example, "likeness") < 0.9
    assert score_of(RtlVerdict("T", code="module a;"), example) < 0.5
    assert Scorer.facts([0.0, 0.01, 0.02, 1.0]) == {"compiles": 0.5}
