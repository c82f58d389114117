"""Full fine-tuning for half of its FLOPs: tensors chosen by what they are worth, against tensors chosen by chance.

`small-22m` learns code and regional languages it never saw. The recovered gap G is an arm's drop of the loss over full
fine-tuning's. FLOPs are counted by torch's FlopCounterMode on eager attention, forward and backward, for every choice
of tensors that a run made; a second figure adds the passes that choosing itself took.
"""

from __future__ import annotations

import random
import statistics
from typing import Any

from benchmarks.arms import Arm, compare, forgetting, gain, sizes, summary, verdict
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known, new

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SHAPE = (4, 128)
STEPS, RHO, INTERVAL = 1000, 0.5, 100
MOST_FLOPS, LEAST_GAP = 0.51, 0.95


def counted(trainer_cls: type) -> type:
    """A GreenTrainer that counts the FLOPs of its steps, and of its choices."""

    class Counted(trainer_cls):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.chosen: list[list[str]] = []
            self.planned: list[float] = []

        def _select(self, inputs: Any) -> None:
            super()._select(inputs)
            self.chosen.append(self.selection.selected)
            self.planned.append(self.selection.share)

        def measured(self) -> dict[str, Any]:
            model = self.accelerator.unwrap_model(self.model)
            full, steps = flops(model, None), [flops(model, set(names)) for names in self.chosen]
            share = statistics.mean(steps) / full
            reach = self._passes(model) / full / self.green.interval
            return {
                "flops": share, "flops with choosing": share + reach, "planned flops": statistics.mean(self.planned),
                "tensors": [len(names) for names in self.chosen],
            }  # fmt: skip

        def _passes(self, model: Any) -> float:
            """FLOPs of the two passes that a choice takes."""
            from core.sparse.green import tensor_flops

            return 2 * flops(model, tensor_flops(model, *SHAPE).reachable(self.green.rho))

    return Counted


def by_chance(trainer_cls: type) -> type:
    """The same with random worth of every tensor, to the same budget."""

    class ByChance(counted(trainer_cls)):
        def importance_of(self, model: Any, inputs: Any, names: set[str]) -> dict[str, float]:
            draw = random.Random(f"{self.args.seed} {self.state.global_step}")
            return {name: draw.random() for name in sorted(names)}

        def _passes(self, model: Any) -> float:
            return 0.0

    return ByChance


def flops(model: Any, names: set[str] | None) -> int:
    """FLOPs of one step on a batch when the named tensors train, or all."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from core.sparse.green_training import set_free

    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    attention = model.config._attn_implementation
    set_free(model, names or {name for name, _ in model.named_parameters()})
    model.set_attn_implementation("eager")
    ids = torch.zeros(SHAPE, dtype=torch.long, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()
    model.set_attn_implementation(attention)
    set_free(model, learning)
    return counter.get_total_flops()


def arms(rates: tuple[float, ...] = RATES, interval: int = INTERVAL) -> list[Arm]:
    """Full fine-tuning, GreenTrainer, and the same budget spent by chance."""
    edit = {"kind": "green", "rho": RHO, "interval": interval}
    return [
        Arm("green", rates, edits=(edit,), wrap=f"{__name__}:counted"),
        Arm("chance", rates, edits=(edit,), wrap=f"{__name__}:by_chance"),
        Arm("full", rates),
        Arm("lora", rates, adapters=({"kind": "lora", "r": 16},)),
    ]


def measure(setting: Setting) -> Measured:
    quick = setting.quick
    found = compare(
        arms((1e-3,), 5)[:3] if quick else arms(),
        setting.work,
        **sizes(quick, STEPS, 10),
    )
    return judged(found)


def judged(found: dict[str, Any]) -> Measured:
    """Recovered gap and the dearest run's share of FLOPs; undecided with fewer than three seeds."""
    names = [name for name in found["arms"] if name != "full"]
    gaps = {name: gain(found, name) / gain(found, "full") for name in names}
    share = max(run["flops"] for run in found["arms"]["green"]["runs"])
    passed = gaps["green"] >= LEAST_GAP and gaps["green"] > gaps["chance"]
    return Measured(
        round(gaps["green"], 3),
        verdict(found, share <= MOST_FLOPS, passed),
        baseline={name: round(gaps[name], 3) for name in names if name != "green"},
        chance="0, the untouched base",
        details={
            "share of full training's FLOPs": round(share, 4),
            "planned share": [round(run["planned flops"], 4) for run in found["arms"]["green"]["runs"]],
            "the same with choosing": round(max(r["flops with choosing"] for r in found["arms"]["green"]["runs"]), 4),
            "share of the choice by chance": round(max(r["flops"] for r in found["arms"]["chance"]["runs"]), 4),
            "recovered gap": {name: round(value, 3) for name, value in gaps.items()},
            "forgetting": {name: round(forgetting(found, name), 3) for name in ["full", *names]},
            "text": {"known": known().sizes(), "new": new().sizes()},
            **summary(found),
        },
    )


BAR = Bar(
    "methods.green_flops",
    "full fine-tuning for half of its FLOPs",
    "recovered gap (GreenTrainer at rho 0.5)",
    "≥ 0.95 at ≤ 0.51 of the FLOPs, and above a choice by chance",
    "gpu",
    5,
    measure,
    small=45,
)
