"""A step over pairs is the same for every cut of its batch, on one process and on two, and under every switch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lattice import difference
from benchmarks.lattice_pairs import OPTIONS, SWITCHES, PairCell, by_hand, cells, change, on_two_processes, trainer_of
from core.config.schema import BackendConfig, OffloadConfig, PrecisionConfig


@pytest.fixture(scope="module")
def reference():
    made = {}

    def of(method, kind):
        if (method, kind) not in made:
            made[method, kind] = by_hand(method, kind)
        return made[method, kind]

    return of


QUICK = [cell for method in OPTIONS for cell in cells(method, full=False)]
MORE = [cell for method in OPTIONS for cell in cells(method, full=True) if cell not in QUICK]


@pytest.mark.parametrize("cell", [*QUICK, *(pytest.param(cell, marks=pytest.mark.slow) for cell in MORE)], ids=str)
def test_a_cell(cell, reference, tmp_path):
    found, _ = change(trainer_of(tmp_path, cell))
    assert difference(found, reference(cell.method, cell.kind)) < 2e-5


def test_two_processes(reference, tmp_path):
    found = on_two_processes(tmp_path)
    assert found.keys() == OPTIONS.keys()
    for method, step in found.items():
        assert difference(step, reference(method, "lora")) < 2e-5, method


def test_a_mean_of_means_is_found_out(reference, tmp_path, monkeypatch):
    from core.training.preference.pairwise import Pairwise

    monkeypatch.setattr(Pairwise, "shares", lambda self, inputs: (1 / 3, 1 / 3))
    for method in ("dpo", "cpo"):
        found, _ = change(trainer_of(tmp_path, PairCell(method, "lora", 3, 3)))
        assert difference(found, reference(method, "lora")) > 1e-2


def test_the_loss_that_is_logged_is_the_steps_own(tmp_path):
    """Five pairs in micro-batches of two: the second step is over one pair, and weighs and logs it as one."""
    found, losses = change(trainer_of(tmp_path, PairCell("cpo", "lora", 2, 2), count=5, steps=2))
    whole, expected = change(trainer_of(tmp_path, PairCell("cpo", "lora", 4, 1), count=5, steps=2))
    assert difference(found, whole) < 2e-5 and losses == pytest.approx(expected, rel=1e-4)


def kinds_of(model):
    """Class of every module but the reference's adapter, which TRL adds and the end takes away."""
    return {name: type(module) for name, module in model.named_modules() if not name.endswith(".ref")}


@pytest.mark.parametrize("name", SWITCHES)
def test_the_model_is_plain_again(name, tmp_path):
    trainer = trainer_of(tmp_path, PairCell("dpo", "lora", 4, 2, SWITCHES[name]), steps=2)
    classes = kinds_of(trainer.model)
    trainer.train()
    assert kinds_of(trainer.model) == classes
    assert "gradient_checkpointing_enable" not in vars(trainer.model)


def test_blocks_that_are_not_recomputed_stay_so_after_the_reference_was_asked(tmp_path):
    from core.training.speed import blocks_of

    switches = (("activation_checkpoint", "selective"), ("offload", "host"))
    trainer, seen = trainer_of(tmp_path, PairCell("dpo", "lora", 4, 2, switches)), []
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

    backend = BackendConfig(precision=PrecisionConfig(params="bf16"), offload=OffloadConfig("none"))
    trainer = trainer_of(tmp_path, PairCell("cpo", "full"), backend=backend, lr=1e-3)
    assert all(p.dtype == torch.bfloat16 for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, MasterAdamW)


def test_weights_are_trained_in_fp32_unless_asked_otherwise(tmp_path, monkeypatch):
    """A base that lies in bf16, as bases do: its updates would be lost in their rounding."""
    import benchmarks.lattice_pairs as lattice

    build = lattice.model_for
    monkeypatch.setattr(lattice, "model_for", lambda *given: build(*given).to(torch.bfloat16))
    trainer = trainer_of(tmp_path, PairCell("dpo", "full"))
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
