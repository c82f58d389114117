"""SpIEL against LoRA with as many trainable parameters, and against supports that do not move.

`small-22m` learns code and regional languages it never saw, all linear maps of its blocks tuned, at the budget of LoRA
of rank 16. The recovered gap G is an arm's drop of the loss over full fine-tuning's. Every arm searches as many
learning rates: full fine-tuning lower ones, and higher ones the momentum approximation, whose steps are scaled
differently. Gradients are accumulated over 15 of every 20 steps; five, the default, choose by much noisier sums here.
"""

from __future__ import annotations

from typing import Any

from benchmarks.arms import Arm, compare, forgetting, gain, sizes, summary, verdict
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known, new

RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
STEPS, RANK, WINDOW = 300, 16, 15
BELOW_LORA, ABOVE_RANDOM = 0.02, 0.03
SPARSE = ("spiel_ag", "spiel_ma", "random", "grad_once")


def lora_parameters(path: str, rank: int) -> int:
    """Trainable parameters of LoRA on all linear maps of the blocks."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.models.linear import features
    from core.models.topology import ModelTopology

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    maps = [part for block in ModelTopology.of(model).blocks for part in block.linears().values()]
    return sum(rank * sum(features(part)) for part in maps)


def arms(path: str, rates: tuple[float, ...] = RATES, rank: int = RANK, **moving: Any) -> list[Arm]:
    """Full fine-tuning, LoRA, SpIEL by accumulated gradients and by momentum, and two supports that stay."""
    budget = lora_parameters(path, rank)

    def spiel(selection: str) -> dict[str, Any]:
        options = {"num_tunable_weights": budget, "selection": selection, "accumulation_steps": WINDOW, **moving}
        return {"kind": "spiel", "with": options}

    return [
        Arm("full", tuple(rate / 4 for rate in rates)),
        Arm("lora", rates, adapters=({"kind": "lora", "r": rank},)),
        Arm("spiel_ag", rates, adapters=(spiel("ag"),)),
        Arm("spiel_ma", tuple(10 * rate for rate in rates), adapters=(spiel("ma"),)),
        Arm("random", rates, adapters=(spiel("random"),)),
        Arm("grad_once", rates, adapters=(spiel("grad_once"),)),
    ]


def measure(setting: Setting) -> Measured:
    size = sizes(setting.quick, STEPS, 8)
    short: dict[str, Any] = {"reselection_steps": 4, "accumulation_steps": 2}
    found = compare(
        arms(size["model"], (1e-3,), 4, **short) if setting.quick else arms(size["model"]),
        setting.work,
        **size,
    )
    return judged(found)


def judged(found: dict[str, Any]) -> Measured:
    """Recovered gaps; undecided with fewer than three seeds."""
    whole, names = gain(found, "full"), ("lora", *SPARSE)
    gaps = {name: gain(found, name) / whole for name in names}
    passed = gaps["spiel_ag"] >= gaps["lora"] - BELOW_LORA and gaps["spiel_ag"] >= gaps["random"] + ABOVE_RANDOM
    sizes = {found["arms"][name]["trainable"] for name in names}
    return Measured(
        round(gaps["spiel_ag"], 3),
        verdict(found, len(sizes) == 1, passed),
        baseline={name: round(gaps[name], 3) for name in ("lora", "random", "grad_once")},
        chance="0, the untouched base",
        details={
            "recovered gap": {name: round(value, 3) for name, value in gaps.items()},
            "forgetting": {name: round(forgetting(found, name), 3) for name in ("full", *names)},
            "text": {"known": known().sizes(), "new": new().sizes()},
            **summary(found),
        },
    )


BAR = Bar(
    "methods.spiel_quality",
    "SpIEL at LoRA's budget, and over supports that do not move",
    "recovered gap (SpIEL-AG)",
    "≥ LoRA - 0.02 and ≥ fixed random support + 0.03",
    "gpu",
    5,
    measure,
    small=60,
)
