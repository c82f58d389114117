"""Training on a verifier's scores: sample, verify, rank, train, and again (ITERTL: Wu et al. 2024; RTLCoder: Liu et al.
2023).

At the start of each iteration the model of the iteration before answers every prompt, the answers are scored, and each
row then holds its reference and scored candidates. The loss adds to the likelihood of the reference a term that orders
the candidates' mean log-probabilities by their scores. The scored rows are written down, so a resumed run never samples
again. What a score means is the caller's; this file knows sequences and numbers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from core.config.files import write_text
from core.data.encode import IGNORE
from core.errors import ConfigError, DataError
from core.inference.request import Request, SamplingParams
from core.training.callbacks import say
from core.training.ranked_rows import GroupCollator, GroupDataset, Scored
from core.training.schedule import schedule
from core.training.trainer import SupervisedTrainer

RankLoss = Literal["none", "rank_margin", "rank_log", "dpo", "best_of"]
RANK_LOSSES: tuple[RankLoss, ...] = ("none", "rank_margin", "rank_log", "dpo", "best_of")


@dataclass(frozen=True)
class LoopSettings:
    """How to iterate.

    Args:
        iterations: the epochs are shared among them equally. samples: candidates a prompt, without the reference.
        loss: the ranking term; `rank_margin` multiplies the likelihood, as in RTLCoder's released code, the others add
            to it. gap: least difference of scores that counts. margin: by how much probabilities must
            differ. weight: of the ranking term. beta: of `dpo`, on means a token (Lambert et al. 2024, Tülu 3, take 5).
        restart: every iteration trains the first model again instead of the last one, on a schedule of its own.
        own_schedule: the learning rate runs through its schedule in every iteration, so that answers are sampled from
            a model that has settled; otherwise once over the whole run.
        split: one sequence after the other through the model, so that memory does not grow with `samples`.
        sampling: how candidates are drawn; a candidate that is cut by its limit counts as failed.
        kl_limit: stop when the mean of log p_t − log p_0 over the model's own answers exceeds it, in nats a token.
        batch: candidates sampled at a time.
        unique_least: stop when fewer than this share of the candidates differ from each other.
    """

    iterations: int = 3
    samples: int = 3
    loss: RankLoss = "rank_margin"
    gap: float = 0.2
    margin: float = 0.3
    weight: float = 1.0
    beta: float = 5.0
    restart: bool = False
    own_schedule: bool = False
    split: bool = False
    sampling: SamplingParams = SamplingParams(max_new_tokens=512, temperature=0.5, top_p=0.95)
    kl_limit: float | None = None
    unique_least: float = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.loss not in RANK_LOSSES:
            raise ConfigError(f"unknown ranking loss '{self.loss}'", hint=f"known: {', '.join(RANK_LOSSES)}")
        if self.iterations < 1 or self.samples < 1:
            raise ConfigError("iterations and samples are at least 1", where="with")


ScoreAll = Callable[[Iterable[tuple[int, str]]], Iterable[float]]
"""Scores in [0, 1] of (row number, text) pairs, in order; the reference's score is 1. Pairs come as they are sampled:
a scorer that reads ahead works while the model samples on. One that also has `facts(scores)` says what the scores of an
iteration mean, such as how many answers compile; these numbers stand beside the mean score."""


def rank_term(
    means: torch.Tensor, scores: torch.Tensor, settings: LoopSettings, base: torch.Tensor | None = None
) -> torch.Tensor:
    """The ranking term of one row; zero where no two scores differ by more than the gap.

    Args:
        means: mean log-probability a token of each candidate. base: the same under the first model, for `dpo`.
    """
    difference = scores[:, None] - scores[None, :]
    better = difference > settings.gap
    if settings.loss in ("none", "best_of") or not bool(better.any()):
        return means.sum() * 0.0
    if settings.loss == "rank_margin":
        shares = torch.softmax(means, 0)
        behind = settings.margin - (shares[:, None] - shares[None, :])
        return behind.clamp(min=0)[better].sum()
    if settings.loss == "rank_log":
        return (means[None, :] - means[:, None] + settings.margin).clamp(min=0)[better].sum()
    relative = means if base is None else means - base
    preferred = relative[:, None] - relative[None, :]
    return -torch.nn.functional.logsigmoid(settings.beta * preferred)[better].sum()


def sequence_logprobs(model: Any, inputs: dict[str, Any], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the log-probabilities of each sequence's learnt tokens, and their number, (B,) each."""
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    wanted = targets[:, 1:]
    learnt = wanted != IGNORE
    picked = logits.gather(2, wanted.clamp(min=0)[..., None]).squeeze(2) - logits.logsumexp(2)
    return (picked * learnt).sum(1), learnt.sum(1)


class RankedTrainer(SupervisedTrainer):
    """The trainer of the loop; made by `ranked_trainer`, which fixes what the class attributes say."""

    settings: LoopSettings = LoopSettings()
    tokenizer: Any = None
    score_all: ScoreAll | None = None
    run: Any = None
    folder: Path | None = None

    model: Any
    optimizer: Any
    base: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        dataset = kwargs["train_dataset"]
        if getattr(dataset, "bins", None) is not None:
            raise ConfigError("rows with candidates cannot be packed", where="data.packing", hint="set packing: false")
        self.grouped = GroupDataset(dataset.rows)
        kwargs.update(train_dataset=self.grouped, data_collator=GroupCollator(self.tokenizer.pad_token_id or 0))
        super().__init__(*args, **kwargs)
        weights = self.model.state_dict().items() if self.settings.restart else ()
        self.first = {name: value.detach().cpu().clone() for name, value in weights} or None
        needs_base = self.settings.kl_limit is not None or self.settings.loss == "dpo"
        self.base = copy.deepcopy(self.model).eval().requires_grad_(False) if needs_base else None
        self._scores: dict[tuple[int, str], float] = {}
        self.add_callback(_Iterations(self))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "groups" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels, targets = inputs.pop("labels"), inputs.pop("targets")
        groups, scores, useful = inputs.pop("groups"), inputs.pop("scores"), inputs.pop("useful")
        inputs.pop("places", None)
        if model.training:
            self._useful = self._useful + useful.sum()
        sums, counts = self._logprobs(model, inputs, targets)
        base = None
        if self.settings.loss == "dpo" and self.base is not None:
            with torch.no_grad():
                found, size = sequence_logprobs(self.base.to(targets.device), inputs, targets)
                base = found / size.clamp(min=1)
        total = sums.sum() * 0.0
        for group in range(int(groups.max()) + 1):
            chosen = (groups == group).nonzero().flatten()
            means = sums[chosen] / counts[chosen].clamp(min=1)
            learnt = chosen[0]
            if self.settings.loss == "best_of" and len(chosen) > 1:
                best = int(scores[chosen[1:]].argmax()) + 1
                learnt = chosen[best] if scores[chosen[best]] > 1 - self.settings.gap else chosen[0]
            rank = rank_term(means, scores[chosen], self.settings, None if base is None else base[chosen])
            rank = self.settings.weight * rank
            if self.settings.loss == "rank_margin":
                total = total - sums[learnt] * (1 + rank)
            else:
                total = total - sums[learnt] + counts[learnt] * rank
        count = torch.as_tensor(num_items_in_batch if num_items_in_batch is not None else (labels != IGNORE).sum())
        return total / count.to(total.device).clamp(min=1) * self.accelerator.num_processes

    def _logprobs(self, model: Any, inputs: dict[str, Any], targets: torch.Tensor):
        if not self.settings.split:
            return sequence_logprobs(model, inputs, targets)
        found = []
        for index in range(len(targets)):
            size = int((inputs["attention_mask"][index]).sum())
            one = {name: value[index : index + 1, :size] for name, value in inputs.items()}
            found.append(
                checkpoint(sequence_logprobs, model, one, targets[index : index + 1, :size], use_reentrant=False)
            )
        return torch.cat([sums for sums, _ in found]), torch.cat([counts for _, counts in found])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and (self.settings.own_schedule or self.settings.restart):
            steps = max(1, num_training_steps // self.settings.iterations)
            factor = schedule(self.train_config, steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: factor(step % steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- iterations --------------------------------------------------------------------------------------------

    def begin(self, iteration: int, fresh: bool = True) -> dict[str, Any]:
        """Candidates of an iteration: read if they were drawn before, else drawn, scored and written.

        Args:
            fresh: the iteration has no step yet; a run resumed within one goes on with the weights that it has.
        """
        place = None if self.folder is None else self.folder / f"iteration-{iteration}.jsonl"
        if place is not None and place.is_file():
            drawn = [[Scored(**c) for c in json.loads(line)] for line in place.read_text().splitlines()]
            if len(drawn) != len(self.grouped):
                raise DataError(
                    "the scored rows are of other data", file=place, got=len(drawn), expected=len(self.grouped)
                )
        else:
            drawn = self._draw(iteration)
            if place is not None:
                lines = (json.dumps([vars(c) for c in row]) + "\n" for row in drawn)
                write_text(place, "".join(lines))
        self.grouped.candidates = drawn
        told = self._describe(iteration, drawn)
        if self.first is not None and iteration and fresh:
            self._start_again(self.first)
        return told

    def _start_again(self, weights: dict[str, torch.Tensor]) -> None:
        """The first weights, and an optimizer that remembers nothing, its own copies of weights included."""
        self.model.load_state_dict(weights)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        optimizer.load_state_dict(type(optimizer)(optimizer.param_groups).state_dict())

    def _draw(self, iteration: int) -> list[list[Scored]]:
        """Sample and score; what is sampled first is verified while the rest is being sampled."""
        from core.inference.engines.hf import HfEngine

        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        engine = HfEngine(model.eval(), self.tokenizer)
        prompts = [self.grouped.prompt(i) for i in range(len(self.grouped))]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        wanted = [i for i in order for _ in range(self.settings.samples)]
        drawn: list[tuple[int, Any]] = []

        def new_texts() -> Iterator[tuple[int, str]]:
            seen = set(self._scores)
            for start in range(0, len(wanted), self.settings.batch):
                part = wanted[start : start + self.settings.batch]
                seed = (self.args.seed * 1009 + iteration) * 65537 + start
                sampling = replace(self.settings.sampling, seed=seed % 2**31)
                made = list(zip(part, engine.generate([Request(prompts[i]) for i in part], sampling)))
                drawn.extend(made)
                for i, output in made:
                    if output.finish_reason != "length" and (i, output.text) not in seen:
                        seen.add((i, output.text))
                        asked.append((i, output.text))
                        yield i, output.text

        asked: list[tuple[int, str]] = []
        assert self.score_all is not None
        for number, score in enumerate(self.score_all(new_texts())):
            self._scores[asked[number]] = float(score)
        model.train(training)
        found: list[list[Scored]] = [[] for _ in prompts]
        for i, output in drawn:
            cut = output.finish_reason == "length"
            ids = list(output.ids) + ([] if cut else [self.tokenizer.eos_token_id])
            found[i].append(Scored(ids, output.text, 0.0 if cut else self._scores[i, output.text], cut))
        return found

    def _describe(self, iteration: int, drawn: Sequence[Sequence[Scored]]) -> dict[str, Any]:
        flat = [c for row in drawn for c in row]
        scores = [c.score for c in flat]
        told = {
            "iteration": iteration, "candidates": len(flat), "mean_score": sum(scores) / len(scores),
            "passed": sum(s >= 1 for s in scores) / len(scores), "cut": sum(c.cut for c in flat) / len(flat),
            "unique": len({(i, c.text) for i, row in enumerate(drawn) for c in row}) / len(flat),
            "histogram": [sum(lo <= min(s, 0.999) < lo + 0.2 for s in scores) for lo in (0.0, 0.2, 0.4, 0.6, 0.8)],
        }  # fmt: skip
        facts = getattr(self.score_all, "facts", None)
        if facts is not None:
            told |= facts(scores)
        if self.base is not None and self.settings.kl_limit is not None:
            told["kl"] = self._drift(drawn)
        return told

    @torch.no_grad()
    def _drift(self, drawn: Sequence[Sequence[Scored]], most: int = 64) -> float:
        """Mean of log p_t − log p_0 a token over the model's own answers."""
        rows = [self.grouped[i].candidates for i in range(min(most, len(drawn)))]
        flat = [row for group in rows for row in group[:1]]
        total = count = 0.0
        device = next(self.model.parameters()).device
        for row in flat:
            inputs = {"input_ids": torch.tensor([row.input_ids], device=device)}
            targets = torch.tensor([row.labels], device=device)
            now, size = sequence_logprobs(self.model, inputs, targets)
            then, _ = sequence_logprobs(self.base.to(device), inputs, targets)
            total, count = total + float(now - then), count + float(size)
        return total / max(count, 1.0)


class _Iterations(TrainerCallback):
    """Draws at the first epoch of every iteration, and stops when a guard says so."""

    def __init__(self, trainer: RankedTrainer) -> None:
        self.trainer, self.last = trainer, -1

    def on_epoch_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        settings = trainer.settings
        steps = max(1, -(-len(kwargs["train_dataloader"]) // args.gradient_accumulation_steps))
        epochs, epoch = max(1.0, state.max_steps / steps), state.epoch or 0.0

        def iteration_at(epoch: float) -> int:
            return min(settings.iterations - 1, int(epoch * settings.iterations / epochs + 1e-6))

        iteration = iteration_at(epoch)
        if iteration == self.last:
            return
        self.last = iteration
        told = trainer.begin(iteration, fresh=epoch % 1 == 0 and (epoch < 1 or iteration_at(epoch - 1) < iteration))
        if trainer.run is not None:
            shown = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
            say(trainer.run, shown)
        if told["unique"] < settings.unique_least:
            control.should_training_stop = True
        if settings.kl_limit is not None and told.get("kl", 0.0) > settings.kl_limit:
            control.should_training_stop = True


def ranked_trainer(
    settings: LoopSettings, tokenizer: Any, score_all: ScoreAll, run: Any = None, folder: Path | None = None
) -> type[RankedTrainer]:
    """The trainer class of a stage.

    Args:
        score_all: scores of sampled texts. run: where progress is told. folder: where scored rows are kept.
    """
    members = {"settings": settings, "tokenizer": tokenizer, "score_all": staticmethod(score_all), "run": run,
               "folder": folder}  # fmt: skip
    return type("RankedTrainer", (RankedTrainer,), members)
