"""Figures of a set of kernels: fast_p and the geometric mean of speedups, as KernelBench defines them.

fast_p (Ouyang et al. 2025) is the share of all problems whose kernel is right and more than p times as fast as the
baseline; fast_0 is the share that is right. Both are computed in the order of the published formulas, so that figures
are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import DataError

THRESHOLDS = (0.0, 0.5, 0.8, 1.0, 1.5, 2.0)


def fast_p(correct: Sequence[bool], baseline: Sequence[float], actual: Sequence[float], p: float) -> float:
    """Share of problems that are correct and have baseline / actual > p.

    Args:
        baseline, actual: milliseconds; those of incorrect kernels are not looked at.

    Raises:
        DataError: lengths that differ, or times of correct kernels that are not positive.
    """
    right, base, mine = _checked(correct, baseline, actual)
    if len(right) == 0:
        return 0.0
    return float(np.sum(base[right] / mine[right] > p) / len(right))


def geometric_mean_speedup(correct: Sequence[bool], baseline: Sequence[float], actual: Sequence[float]) -> float:
    """The geometric mean of baseline / actual over correct kernels; 0 when there is none.

    The product is taken as published where it can be represented; where it leaves the range of doubles, logarithms are.
    """
    right, base, mine = _checked(correct, baseline, actual)
    ratios = base[right] / mine[right]
    if len(ratios) == 0:
        return 0.0
    with np.errstate(over="ignore", under="ignore"):
        product = np.prod(ratios)
    if not np.isfinite(product) or product < np.finfo(np.float64).tiny:
        return float(np.exp(np.mean(np.log(ratios))))
    return float(product ** (1 / len(ratios)))


def _checked(correct: Sequence[bool], baseline: Sequence[float], actual: Sequence[float]):
    right = np.asarray(correct, bool)
    base, mine = np.asarray(baseline, np.float64), np.asarray(actual, np.float64)
    if not len(right) == len(base) == len(mine):
        raise DataError(f"{len(right)} verdicts, {len(base)} baseline times and {len(mine)} times")
    for name, times in (("baseline", base), ("kernel", mine)):
        if bool((~(times[right] > 0)).any()):
            raise DataError(
                f"a {name} time of a correct kernel is not positive", hint="leave problems without times out"
            )
    return right, base, mine
