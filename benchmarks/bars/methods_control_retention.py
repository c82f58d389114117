"""Control LLM against full fine-tuning and LoRA: what is gained on new text, what is forgotten of the known.

`small-22m` learns code and regional languages it never saw; learning copies stand beside a third of its blocks
(concat, lerp, mean squared distance). All arms search the same learning rates with the first seed: full fine-tuning
takes the one with the least loss on held-out new text, the others the one that forgets least among those that reach
0.8 of its gain. The whole front of each arm is in the details.
"""

from __future__ import annotations

from typing import Any

from benchmarks.arms import (
    Arm,
    compare,
    forgetting,
    gain,
    least_loss,
    sizes,
    summary,
    verdict,
)
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known, new

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
STEPS = 300
MOST_FORGOTTEN, LEAST_GAIN = 0.25, 0.8


def arms(rates: tuple[float, ...] = RATES, **control: Any) -> list[Arm]:
    """Full fine-tuning, LoRA of rank 16, and learning copies."""
    edit = {"kind": "control", "num_expand": 1 / 3, "merge": "lerp", "align": "mse", "alpha": 1.0, **control}
    return [
        Arm("full", rates),
        Arm("lora", rates, adapters=({"kind": "lora", "r": 16},)),
        Arm("control", rates, edits=(edit,)),
    ]


def measure(setting: Setting) -> Measured:
    quick = setting.quick
    found = compare(
        arms((1e-3,)) if quick else arms(),
        setting.work,
        **sizes(quick, STEPS, 12),
        choose=choose,
    )
    return judged(found)


def choose(name: str, tried: dict[float, Any], found: dict[str, Any]) -> float:
    """The rate that forgets least among those that reach the asked share of full fine-tuning's gain."""
    if name == "full":
        return least_loss(name, tried, found)
    wanted = LEAST_GAIN * gain(found, "full")
    enough = [rate for rate, run in tried.items() if found["base"]["B"] - run["B"] >= wanted]
    return min(enough, key=lambda rate: tried[rate]["A"]) if enough else least_loss(name, tried, found)


def judged(found: dict[str, Any]) -> Measured:
    """Forgetting over full fine-tuning's, and the gain over its gain; undecided with fewer than three seeds."""
    names = ("full", "lora", "control")
    gains = {name: gain(found, name) for name in names}
    lost = {name: forgetting(found, name) for name in names}
    ratio, share = lost["control"] / lost["full"], gains["control"] / gains["full"]
    return Measured(
        round(ratio, 3),
        verdict(found, lost["control"] < lost["full"], ratio <= MOST_FORGOTTEN and share >= LEAST_GAIN),
        baseline={name: {"gain": round(gains[name], 3), "forgetting": round(lost[name], 3)} for name in names[:2]},
        chance="1, forgetting as full fine-tuning does",
        details={
            "gain over full fine-tuning's": round(share, 3),
            "control": {"gain": round(gains["control"], 3), "forgetting": round(lost["control"], 3)},
            "front": {name: front(found, name) for name in names},
            "text": {"known": known().sizes(), "new": new().sizes()},
            **summary(found),
        },
    )


def front(found: dict[str, Any], name: str) -> dict[str, list[float]]:
    """Gain and forgetting at every rate of the search."""
    base = found["base"]
    return {
        str(rate): [round(base["B"] - run["B"], 3), round(run["A"] - base["A"], 3)]
        for rate, run in found["arms"][name]["search"].items()
    }


BAR = Bar(
    "methods.control_retention",
    "Control LLM keeps what the base knew",
    "of full fine-tuning's forgetting",
    "≤ 0.25 at ≥ 0.8 of its gain",
    "gpu",
    3,
    measure,
    small=45,
)
