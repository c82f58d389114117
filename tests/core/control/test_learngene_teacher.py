"""The first stage of a learngene: an auxiliary model under a teacher, in whole runs."""

from __future__ import annotations

import pytest
import torch
import transformers as tr

from core.config.load import recipe_from
from core.config.registry import BuildContext
from core.config.run_folder import RunFolder
from core.control.learngene import TEACHERS, Learngene, build_auxiliary, hook
from core.control.options import LearngeneOptions
from core.errors import CheckpointError, ConfigError
from core.inference.load import load_for_serving
from core.objectives.distill import distillation
from core.training.merge import logits_of
from core.training.run import train

CONFIG = tr.LlamaConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32, tie_word_embeddings=True,
)  # fmt: skip
IDS = torch.arange(3, 12).view(1, -1)


def recipe(output, steps=4, train_keys=None, model=None, **edit):
    return recipe_from(
        {
            "app": "lm",
            "output": str(output),
            "model": {"preset": "tiny", "tokenizer": "bpe:300", **(model or {})}
            | {"edits": [{"kind": "learngene", "depth": 3, **edit}]},
            "data": {"train": [{"reader": "embedded", "split": "train", "limit": 40}], "max_length": 32},
            "method": "lm.pretrain",
            "train": {"max_steps": steps, "lr": 1e-2, "batch": {"size": 4}, **(train_keys or {})},
            "eval": {"every": 0},
            "checkpoint": {"every": 2},
        }
    )


def test_the_loss_is_the_weighted_sum_of_divergence_and_cross_entropy():
    base = tr.LlamaForCausalLM(CONFIG)
    options = LearngeneOptions(depth=3, teacher="base", alpha=0.75, temperature=2.0)
    made = build_auxiliary(base, options, BuildContext(3))
    trainer_cls, callbacks = hook(tr.Trainer, made, options)
    assert trainer_cls.teacher is base is TEACHERS[made] and callbacks == []
    loss = trainer_cls.distill
    assert (loss.ce, loss.kl, loss.temperature, loss.hidden) == (0.25, 0.75, 2.0, 0.0)
    terms = distillation(loss, made, base, {"input_ids": IDS}, IDS)
    student, teacher = (m(input_ids=IDS, use_cache=False).logits[0, :-1] for m in (made, base))
    kl = torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(terms["kl"], 4 * kl)
    torch.testing.assert_close(terms["ce"], torch.nn.functional.cross_entropy(student, IDS[0, 1:], reduction="sum"))


def test_a_teacher_on_the_line_leaves_nothing_to_learn():
    teacher = Learngene.from_config(CONFIG, tr.LlamaForCausalLM, seed=5).descend(3)
    options = LearngeneOptions(depth=3, teacher="base", start="fit")
    made = build_auxiliary(teacher, options, BuildContext())
    loss = hook(tr.Trainer, made, options)[0].distill
    terms = distillation(loss, made, teacher, {"input_ids": IDS}, IDS)
    assert loss.ce == 0 and float(terms["kl"].detach()) < 1e-6
    plain = LearngeneOptions(depth=3)
    assert hook(tr.Trainer, build_auxiliary(teacher, plain, BuildContext()), plain) == (tr.Trainer, [])


def test_a_run_learns_from_its_teacher_and_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    from core.training.trainer import SupervisedTrainer

    made = recipe(tmp_path / "whole", steps=6, teacher="base", alpha=1.0)
    whole = RunFolder.create(made)
    train(whole.recipe(), whole)
    logged = [row for row in whole.read_metrics() if "loss" in row and "kl" in row]
    assert logged and all(abs(row["loss"] - row["kl"]) < 0.2 * row["kl"] for row in logged)
    assert logged[-1]["kl"] < logged[0]["kl"]
    broken = RunFolder.create(recipe(tmp_path / "broken", steps=6, teacher="base", alpha=1.0))
    original, calls = SupervisedTrainer.training_step, []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("killed")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "training_step", fails)
    with pytest.raises(RuntimeError, match="killed"):
        train(broken.recipe(), broken)
    monkeypatch.setattr(SupervisedTrainer, "training_step", original)
    train(broken.recipe(), broken, resume=True)
    a, b = (load_for_serving(str(run.path))[0] for run in (whole, broken))
    probe = torch.arange(5, 40).unsqueeze(0)
    assert torch.equal(logits_of(a, probe), logits_of(b, probe))


def test_mistakes_are_told(tmp_path):
    for name in ("alpha", "temperature"):
        with pytest.raises(ConfigError, match=f"{name} weighs a teacher, and there is none"):
            recipe(tmp_path, **{name: 1.0})
    with pytest.raises(ConfigError, match="alpha"):
        recipe(tmp_path, teacher="base", alpha=1.5)
    with pytest.raises(ConfigError, match="gives the cross-entropy no weight"):
        recipe(tmp_path, teacher="base", train_keys={"label_smoothing": 0.1})
    recipe(tmp_path, teacher="base", alpha=0.5, train_keys={"label_smoothing": 0.1})
    other = RunFolder.create(recipe(tmp_path / "other", teacher="embedded"))
    with pytest.raises(ConfigError, match="tokens are not those of the model"):
        train(other.recipe(), other)
    gone = RunFolder.create(recipe(tmp_path / "gone", teacher=str(tmp_path / "nothing")))
    with pytest.raises(CheckpointError, match="nothing"):
        train(gone.recipe(), gone)


def test_a_teacher_of_its_own_with_the_same_tokens(tmp_path):
    own = recipe(tmp_path / "own", model={"tokenizer": "embedded"}, steps=2, teacher="embedded", alpha=1.0)
    run = RunFolder.create(own)
    assert train(run.recipe(), run)["status"] == "done"
    assert any("kl" in row for row in run.read_metrics())
