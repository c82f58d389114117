"""How much of the price of 2:4 sparsity moving masks save, against masks that stay.

`small-22m` is trained on a part of the text that it knows, dense and with two of four weights gone. The price of an arm
is its perplexity on held-out text above that of the dense model, untouched or trained, whichever is better. Masks that
stay come from magnitudes, as those of AST do at its start, and learn by cross-entropy alone. AST decides; the
same with a branch of one extra weight for 16 inputs (SLoRB) stands beside it. Its masks have to settle: in the last
tenth of training an update may move less than a thousandth of the weights to the other side. Published runs have 40,000
steps to decay what the masks leave out; these have 500, so the decay is 0.01 and not 0.00006.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.arms import Arm, compare, perplexity, sizes, summary, verdict
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
STEPS, MOST, MOST_FLIPS, DECAY = 500, 0.5, 0.001, 0.01
FIXED = {"kind": "prune", "method": "magnitude", "pattern": "2:4", "hidden": 0.0}


def counted(trainer_cls: type) -> type:
    """A Trainer of AST that tells how many weights changed sides."""

    class Counted(trainer_cls):
        def measured(self) -> dict[str, Any]:
            shares, every = self.selection.history, self.selection.every
            last = max(1, round(0.1 * self.state.max_steps / every))
            return {"updates": len(shares), "flips": max(shares[-last:], default=None)}

    return Counted


def arms(rates: tuple[float, ...] = RATES, steps: int = STEPS) -> list[Arm]:
    """Dense, masks that stay, masks that move, and the latter with a branch."""
    schedule = {"ramp_steps": steps // 4, "update_every": min(10, steps // 5), "decay": DECAY}
    moving = {"kind": "ast", "pattern": "2:4", **schedule}
    return [
        Arm("ast", rates, edits=(moving,), wrap=f"{__name__}:counted"),
        Arm("ast, branch", rates, edits=({**moving, "slorb_k": 16},), wrap=f"{__name__}:counted"),
        Arm("dense", rates),
        Arm("static", rates, edits=(FIXED,)),
    ]


def measure(setting: Setting) -> Measured:
    size = sizes(setting.quick, STEPS, 20)
    brief = [arm for arm in arms((1e-4,), 20) if arm.name in ("ast", "dense", "static")]
    found = compare(
        brief if setting.quick else arms(steps=size["steps"]),
        setting.work,
        **size,
        part="known",
        start=(FIXED,),
    )
    return judged(found)


def judged(found: dict[str, Any]) -> Measured:
    """The price of AST over that of fixed masks, and whether its own settle; undecided with fewer than three seeds."""
    reached = {name: perplexity(found, name) for name in found["arms"]}
    dense = min(reached["dense"], math.exp(found["base"]["B"]))
    price = {name: value - dense for name, value in reached.items() if name != "dense"}
    ratio = price["ast"] / price["static"]
    flips = {name: [run.get("flips") for run in arm["runs"]] for name, arm in found["arms"].items() if "ast" in name}
    settled = all(share is not None and share < MOST_FLIPS for share in flips["ast"])
    return Measured(
        round(ratio, 3),
        verdict(found, price["static"] > 0, ratio <= MOST and settled),
        baseline={"static": round(price["static"], 3)},
        chance="1, as much as masks that stay",
        details={
            "perplexity": {name: round(value, 3) for name, value in reached.items()},
            "above dense": {name: round(value, 3) for name, value in price.items()},
            "share of weights that change sides at an update, at most, last tenth": flips,
            "text": known().sizes(),
            **summary(found),
        },
    )


BAR = Bar(
    "methods.ast_gap",
    "2:4 sparsity by masks that move",
    "of the perplexity that fixed masks cost",
    "≤ 0.5, and < 0.1 % of the weights change sides at an update in the last tenth",
    "gpu",
    5,
    measure,
    small=60,
)
