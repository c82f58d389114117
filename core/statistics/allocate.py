"""Decisions under a budget, made exactly: which tensors to train, which threshold to cut at.

The functions take numbers and give numbers; what the costs and the gains are, their callers know. A budget that nothing
fits raises `BudgetError` with the best that can be had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.errors import BudgetError


@dataclass(frozen=True)
class Stage:
    """One step of a chain that is walked from its near end.

    Args:
        passage: cost of walking through, paid by everything that lies beyond.
        costs, values: of the items that may be taken here; a negative value is never worth taking.
    """

    passage: float
    costs: Sequence[float] = ()
    values: Sequence[float] = ()


@dataclass
class Chosen:
    """Items as (stage, number in it), their value, and the exact cost with the passages walked."""

    items: list[tuple[int, int]] = field(default_factory=list)
    value: float = 0.0
    cost: float = 0.0


def prefix_knapsack(stages: Sequence[Stage], budget: float, units: int = 1000) -> Chosen:
    """The items of greatest value whose costs, with the passages of all stages before the deepest one, fit `budget`.

    One table K[b] of the best value for a budget of b units grows stage by stage; at stage s the answer is
    K[budget - passages before s]. Costs are rounded up to units, so the budget is never exceeded; what rounding left
    over is filled with the items that still fit. Exact when costs are whole units.

    Raises:
        BudgetError: no item fits, with the smallest budget that would do.
    """
    passages = np.concatenate([[0.0], np.cumsum([stage.passage for stage in stages])])
    least = min((passages[s] + cost for s, stage in enumerate(stages) for cost in stage.costs), default=math.inf)
    if budget < least:
        raise BudgetError(
            f"a budget of {budget:.4g}, the cheapest item costs {least:.4g}", best_achievable=float(least)
        )
    unit = budget / units if budget > 0 else 1.0
    best = np.zeros(units + 1)
    flat = [(s, i) for s, stage in enumerate(stages) for i in range(len(stage.costs))]
    taken = np.zeros((len(flat), units + 1), dtype=bool)
    found, row = (-1.0, -1, 0, 0), 0
    for s, stage in enumerate(stages):
        for cost, value in zip(stage.costs, stage.values):
            weight = math.ceil(cost / unit - 1e-9)
            if value > 0 and weight <= units:
                reached = best.copy()
                reached[weight:] = np.maximum(reached[weight:], best[: units + 1 - weight] + value)
                taken[row], best = reached > best, reached
            row += 1
        left = math.floor((budget - passages[s]) / unit + 1e-9)
        if left < 0:
            break
        if best[left] > found[0]:
            found = (float(best[left]), s, left, row)
    _, depth, left, row = found
    chosen: list[tuple[int, int]] = []
    for number in range(row - 1, -1, -1):
        if taken[number, left]:
            s, i = flat[number]
            chosen.append((s, i))
            left -= math.ceil(stages[s].costs[i] / unit - 1e-9)
    return _filled(stages, chosen[::-1], depth, budget - float(passages[depth]), float(passages[depth]))


def _filled(stages: Sequence[Stage], chosen: list[tuple[int, int]], depth: int, room: float, passage: float) -> Chosen:
    """The choice with the items up to stage `depth` added that exact costs leave room for, the densest first."""
    room -= sum(stages[s].costs[i] for s, i in chosen)
    others = [
        (s, i)
        for s in range(depth + 1)
        for i in range(len(stages[s].costs))
        if stages[s].values[i] > 0 and (s, i) not in set(chosen)
    ]
    for s, i in sorted(others, key=lambda at: -stages[at[0]].values[at[1]] / max(stages[at[0]].costs[at[1]], 1e-30)):
        if stages[s].costs[i] <= room:
            chosen.append((s, i))
            room -= stages[s].costs[i]
    value, cost = (sum(getattr(stages[s], name)[i] for s, i in chosen) for name in ("values", "costs"))
    deepest = max((s for s, _ in chosen), default=0)
    walked = sum(stage.passage for stage in stages[:deepest]) if chosen else 0.0
    return Chosen(sorted(chosen), value, cost + min(walked, passage))


def threshold_bisect(
    share: Callable[[float], float], target: float, low: float = 0.0, high: float = 1.0, steps: int = 60
) -> float:
    """The largest threshold whose `share`, a step function that rises with it, is at most `target`.

    Raises:
        BudgetError: the share is above the target at `low` or below it at `high`.
    """
    if not share(low) <= target <= share(high):
        raise BudgetError(
            f"a share of {target:.4g} is out of reach",
            best_achievable=share(high) if target > share(high) else share(low),
            hint=f"{share(low):.4g} to {share(high):.4g}",
        )
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) <= target else (low, middle)
    return low
