"""When a loss is a spike: a level above the recent ones, and the settings around it. Plain numbers, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from core.config.schema import key

ENOUGH = 8
FLOOR = 0.02


@dataclass(frozen=True)
class SpikeConfig:
    """When a run goes back to an earlier checkpoint."""

    every: int = key(0, "optimizer steps between two looks at the loss; 0 never looks", least=0)
    deviations: float = key(10.0, "a look this many deviations above the median of recent ones is high", above=0)
    window: int = key(64, "recent looks that make the median", least=ENOUGH)
    patience: int = key(3, "high looks in a row that make a spike; one that is not finite does at once", least=1)
    limit: int = key(10, "times a run goes back before it is given up", least=1)


def threshold(looks: Sequence[float], deviations: float) -> float:
    """The level above which a look is high: median + deviations · 1.4826 · median absolute deviation.

    The deviation counts as at least 2 % of the median, so that a loss that hardly moves is not cut off by its noise.
    With fewer than 8 looks nothing is high.
    """
    if len(looks) < ENOUGH:
        return math.inf
    middle = median(looks)
    spread = 1.4826 * median(abs(look - middle) for look in looks)
    return middle + deviations * max(spread, FLOOR * abs(middle))
