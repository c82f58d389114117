"""A model with a quarter of its weights left, won back by SquareHead, by logits and by cross-entropy alone.

`small-22m` is trained on a part of the text that it knows; that is the dense model, which teaches. It is pruned by
SparseGPT and trained for as many steps again. The gap of an arm is its perplexity on held-out text above that of the
dense model, as it was pruned or trained on as well, whichever is better. Every arm searches as many learning rates, the
dense model lower ones. SquareHead has three times the published weight: of 1, 3, 10 and 30 it was the best on a 7M
model.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm, compare, perplexity, sizes, summary, verdict
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known

RATES = (3e-4, 1e-3, 3e-3)
STEPS, MOST, HIDDEN = 500, 0.5, 3.0
PRUNED = {"kind": "prune", "method": "sparsegpt", "pattern": "0.75", "hidden": 0.0, "rows": 64, "length": 256}


def arms(rates: tuple[float, ...] = RATES) -> list[Arm]:
    """Dense, and one pruned model under three losses."""
    return [
        Arm("squarehead", rates, edits=({**PRUNED, "hidden": HIDDEN},)),
        Arm("logits", rates, edits=({**PRUNED, "kl": 1.0},)),
        Arm("cross-entropy", rates, edits=(PRUNED,)),
        Arm("dense", tuple(rate / 10 for rate in rates)),
    ]


def measure(setting: Setting) -> Measured:
    quick, size = setting.quick, {**sizes(setting.quick, STEPS, 10), "part": "known"}
    dense = learnt((3e-4,) if quick else RATES, setting.work, size)
    found = compare(
        arms((3e-4,)) if quick else arms(),
        setting.work,
        **{**size, "model": dense["folder"]},
        start=(PRUNED,),
    )
    found["sizes"]["model"] = Path(size["model"]).name
    shutil.rmtree(setting.work / "teacher")
    return judged(found)


def learnt(rates: tuple[float, ...], work: Path, size: dict[str, Any]) -> dict[str, Any]:
    """The run that makes the dense model, at the best of `rates`."""
    arm = Arm("teacher", rates, save=str(work / "teacher"))
    found = compare([arm], work, **{**size, "seeds": size["seeds"][:1]})
    return found["arms"]["teacher"]["runs"][0]


def judged(found: dict[str, Any]) -> Measured:
    """The gap of SquareHead over that of cross-entropy; undecided with fewer than three seeds."""
    reached = {name: perplexity(found, name) for name in found["arms"]}
    dense = min(reached["dense"], math.exp(found["base"]["B"]))
    gap = {name: value - dense for name, value in reached.items() if name != "dense"}
    ratio = gap["squarehead"] / gap["cross-entropy"]
    passed = ratio <= MOST and gap["squarehead"] < min(gap["cross-entropy"], gap["logits"])
    return Measured(
        round(ratio, 3),
        verdict(found, gap["cross-entropy"] > 0, passed),
        baseline={name: round(gap[name], 3) for name in ("cross-entropy", "logits")},
        chance="1, cross-entropy alone",
        details={
            "perplexity": {name: round(value, 3) for name, value in reached.items()},
            "dense as it was pruned": round(math.exp(found["base"]["B"]), 3),
            "above dense": {name: round(value, 3) for name, value in gap.items()},
            "text": known().sizes(),
            **summary(found),
        },
    )


BAR = Bar(
    "methods.squarehead",
    "75 % sparsity with the distance of block outputs in the loss",
    "of the gap to dense that cross-entropy alone leaves",
    "≤ 0.5, and below logits",
    "gpu",
    5,
    measure,
    small=60,
)
