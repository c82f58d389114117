"""LLM-Adapters' four families at equal trainable parameters, between the untouched base and full fine-tuning.

`small-22m` learns code and regional languages it never saw. The recovered gap G is an arm's drop of the loss over full
fine-tuning's; forgetting is the rise of the loss on held-out text of what the base knew. Every arm searches as many
learning rates; those of prefixes are ten times as high.
"""

from __future__ import annotations

from typing import Any

from benchmarks.arms import Arm, compare, forgetting, gain, sizes, summary, verdict
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known, new

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STEPS = 300
LEAST, LEAST_PREFIX = 0.75, 0.2


def arms(rates: tuple[float, ...] = RATES, small: bool = False) -> list[Arm]:
    """Full fine-tuning and the families, each with as many trainable parameters as LoRA of rank 16 (8 on tiny-7m)."""
    lora, parallel, series, prefix = (8, 13, 26, 104) if small else (16, 26, 48, 288)
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    return [
        Arm("full", rates),
        Arm("lora", rates, adapters=({"kind": "lora", "r": lora, "targets": targets},)),
        Arm("parallel", rates, adapters=({"kind": "parallel", "with": {"r": parallel}},)),
        Arm("series", rates, adapters=({"kind": "series", "with": {"r": series}},)),
        Arm("prefix", tuple(10 * rate for rate in rates), adapters=({"kind": "prefix", "with": {"tokens": prefix}},)),
    ]


def measure(setting: Setting) -> Measured:
    quick = setting.quick
    found = compare(
        arms((3e-3,), small=True) if quick else arms(),
        setting.work,
        **sizes(quick, STEPS, 30),
    )
    return judged(found)


def judged(found: dict[str, Any]) -> Measured:
    """Recovered gaps and forgetting against full fine-tuning; undecided with fewer than three seeds."""
    names = ("lora", "parallel", "series", "prefix")
    whole, forgot = gain(found, "full"), forgetting(found, "full")
    gaps = {name: gain(found, name) / whole for name in names}
    lost = {name: forgetting(found, name) for name in names}
    counts = {name: found["arms"][name]["trainable"] for name in names}
    equal = max(counts.values()) <= 1.02 * min(counts.values())
    enough = all(gaps[name] >= (LEAST_PREFIX if name == "prefix" else LEAST) for name in names)
    return Measured(
        round(min(gaps[name] for name in names[:3]), 3),
        verdict(found, equal, enough and all(lost[name] <= forgot for name in names)),
        baseline={"full fine-tuning": {"gain": round(whole, 3), "forgetting": round(forgot, 3)}},
        chance="0, the untouched base",
        details={
            "recovered gap": {name: round(value, 3) for name, value in gaps.items()},
            "forgetting": {name: round(value, 3) for name, value in lost.items()},
            "text": {"known": known().sizes(), "new": new().sizes()},
            **summary(found),
        },
    )


BAR = Bar(
    "methods.adapters_quality",
    "series, parallel, LoRA and prefix at equal parameters",
    "recovered gap (least of LoRA, parallel, series)",
    "≥ 0.75 (prefix ≥ 0.2), forgetting no worse than full fine-tuning",
    "gpu",
    3,
    measure,
    small=45,
)
