"""A step over pairs is the same for every cut of its batch, on one process and on two, and under every switch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.config.schema import AdapterConfig, BackendConfig, ModelConfig, OffloadConfig, PrecisionConfig, TrainConfig
from core.data.segments import Segment
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.training.build import add_adapters

ROOT = Path(__file__).parents[4]
RATE, EIGHT = 0.5, 8
OPTIONS = {
    "dpo": {"beta": 0.3, "max_length": None},
    "wpo": {"beta": 0.3, "max_length": None, "use_weighting": True},
    "dpo + sft": {"beta": 0.3, "max_length": None, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    "cpo": {"beta": 0.1, "cpo_alpha": 0.7, "max_length": 64},
}
CUTS = [(8, 1), (4, 2), (3, 3), (1, 8)]


def trainer_of(folder, method, micro, accumulation, *, kind="lora", backend=None, count=EIGHT, steps=1, lr=RATE):
    from transformers import TrainingArguments

    from core.training.preference.cpo import CpoTrainer
    from core.training.preference.dpo import DpoTrainer
    from core.training.preference.pairs import Pair, encode_pairs

    tokenizer = train_bpe(["say red blue green white black brown"] * 3, 300)
    prompt = Segment("say ")
    answers = [("red " * (1 + 5 * i), "blue " * (1 + (7 * i) % 11)) for i in range(count)]
    rows = [Pair(*([prompt, Segment(text, "assistant", True)] for text in pair)) for pair in answers]
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3)
    if kind == "lora":
        model = add_adapters(model, [AdapterConfig(r=4)])
    generator = torch.Generator().manual_seed(4)
    backend = backend or BackendConfig()
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
        max_steps=steps, learning_rate=lr, optim="sgd", max_grad_norm=0.0, use_cpu=True, report_to=[], bf16=False,
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
        gradient_checkpointing=backend.activation_checkpoint == "full", ddp_find_unused_parameters=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    trainer = (CpoTrainer if method == "cpo" else DpoTrainer)(
        model=model, args=arguments, train_dataset=encode_pairs(rows, tokenizer)[0], tokenizer=tokenizer,
        options=OPTIONS[method], train_config=TrainConfig(schedule="constant", warmup=0), backend=backend,
    )  # fmt: skip
    with torch.no_grad():
        # policy and reference differ, so that weights and comparisons do not start at a point of symmetry
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and (kind == "full" or "lora_B" in name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return trainer


def change(trainer):
    """What one step makes of the trained weights (P,), and the loss it says it had."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return torch.cat([(after[n].detach() - p).flatten() for n, p in sorted(before.items())]), losses


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_every_cut_takes_the_same_step(method, kind, tmp_path):
    wanted, (loss,) = change(trainer_of(tmp_path, method, 8, 1, kind=kind))
    assert wanted.abs().max() > 1e-3
    for micro, accumulation in CUTS[1:]:
        found, losses = change(trainer_of(tmp_path, method, micro, accumulation, kind=kind))
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5, (micro, accumulation)
        assert losses == pytest.approx([loss], rel=1e-4)


def test_a_mean_of_means_is_found_out(tmp_path, monkeypatch):
    from core.training.preference.pairwise import Pairwise

    wanted, _ = change(trainer_of(tmp_path, "cpo", 8, 1))
    monkeypatch.setattr(Pairwise, "shares", lambda self, inputs: (1 / 3, 1 / 3))
    found, _ = change(trainer_of(tmp_path, "cpo", 3, 3))
    assert float((found - wanted).abs().max() / wanted.abs().max()) > 1e-2


def test_a_short_last_window_counts_as_what_it_is(tmp_path):
    """Five pairs in micro-batches of two: the second step is over one pair, and weighs it as one."""
    found, losses = change(trainer_of(tmp_path, "cpo", 2, 2, count=5, steps=2))
    whole, expected = change(trainer_of(tmp_path, "cpo", 4, 1, count=5, steps=2))
    assert float((found - whole).abs().max() / whole.abs().max()) < 2e-5
    assert losses == pytest.approx(expected, rel=1e-4)


SWITCHES = {
    "fused": {"kernels": "fused"},
    "fused, plain LoRA": {"kernels": "fused", "lora": "plain"},
    "recomputed": {"activation_checkpoint": "full"},
    "every second block": {"activation_checkpoint": "selective", "kernels": "fused"},
    "inputs on the host": {"activation_checkpoint": "full", "offload": OffloadConfig("host")},
}


def kinds_of(model):
    """Class of every module but the reference's adapter, which TRL adds and the end takes away."""
    return {name: type(module) for name, module in model.named_modules() if not name.endswith(".ref")}


@pytest.mark.parametrize("method", ["dpo", "cpo"])
@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_nothing_that_is_learnt(name, kind, method, tmp_path):
    plain = BackendConfig(kernels="plain", lora="plain", activation_checkpoint="none", offload=OffloadConfig("none"))
    wanted, _ = change(trainer_of(tmp_path, method, 4, 2, kind=kind, backend=plain, steps=2))
    trainer = trainer_of(tmp_path, method, 4, 2, kind=kind, backend=BackendConfig(**SWITCHES[name]), steps=2)
    classes = kinds_of(trainer.model)
    found, _ = change(trainer)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert kinds_of(trainer.model) == classes
    assert "gradient_checkpointing_enable" not in vars(trainer.model)


def test_blocks_that_are_not_recomputed_stay_so_after_the_reference_was_asked(tmp_path):
    from core.training.speed import blocks_of

    backend = BackendConfig(activation_checkpoint="selective", offload=OffloadConfig("host"))
    trainer, seen = trainer_of(tmp_path, "dpo", 4, 2, backend=backend), []
    original = trainer._compute_loss

    def spy(*args):
        found = original(*args)
        blocks = blocks_of(trainer.model)
        kinds = {type(b._gradient_checkpointing_func).__name__ for b in blocks if b.gradient_checkpointing}
        seen.append(([b.gradient_checkpointing for b in blocks], kinds))
        return found

    trainer._compute_loss = spy
    trainer.train()
    flags = [n % 2 == 0 for n in range(len(blocks_of(trainer.model)))]
    assert len(seen) == 2 and all(entry == (flags, {"Recomputed"}) for entry in seen), seen


def test_bf16_parameters_are_stepped_on_fp32_copies(tmp_path):
    from core.training.masters import MasterAdamW

    backend = BackendConfig(precision=PrecisionConfig(params="bf16"))
    trainer = trainer_of(tmp_path, "cpo", 8, 1, kind="full", backend=backend, lr=1e-3)
    assert all(p.dtype == torch.bfloat16 for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, MasterAdamW)


def test_bf16_weights_are_trained_in_fp32_unless_asked_otherwise(tmp_path):
    from core.training.preference.frame import train_in

    trainer = trainer_of(tmp_path, "dpo", 8, 1, kind="full")
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    model = trainer.model.to(torch.bfloat16)
    train_in(model, "auto")
    assert all(p.dtype == torch.float32 for p in model.parameters())


TWO = """
import sys, torch
sys.path[:0] = [{root!r}]
from tests.core.training.preference.test_cuts import OPTIONS, change, trainer_of
found = {{m: change(trainer_of({out!r}, m, 2, 2))[0] for m in OPTIONS}}
import torch.distributed as dist
if dist.get_rank() == 0:
    torch.save(found, {out!r} + "/two.pt")
dist.destroy_process_group()
"""


def test_two_processes_take_the_step_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), out=str(tmp_path)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, str(script)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(tmp_path / "two.pt")
    for method, found in two.items():
        wanted, _ = change(trainer_of(tmp_path, method, 8, 1))
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5, method
