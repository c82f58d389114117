"""fast_p and the geometric mean of speedups are those that KernelBench publishes, to the last bit.

The published formulas are written out here, apart from the app's, and both are given random verdicts and times.
"""

from __future__ import annotations

import numpy as np

from benchmarks.bar import Bar, Measured, Setting

ARRAYS = 10_000


def measure(setting: Setting) -> Measured:
    """Arrays on which the two differ in any bit."""
    from apps.cuda.metrics import THRESHOLDS, fast_p, geometric_mean_speedup

    draw = np.random.default_rng(7)
    different, compared = 0, 0
    for _ in range(500 if setting.quick else ARRAYS):
        n = int(draw.integers(1, 120))
        right = draw.random(n) < draw.random()
        base = np.exp(draw.normal(0, 1.5, n))
        mine = base / np.exp(draw.normal(0, 1, n))
        ours = [fast_p(right, base, mine, p) for p in THRESHOLDS] + [geometric_mean_speedup(right, base, mine)]
        theirs = [_share(right, base, mine, n, p) for p in THRESHOLDS] + [_geometric(right, base, mine, n)]
        different += any(a != b for a, b in zip(ours, theirs))
        compared += len(ours)
    return Measured(different, different == 0, baseline="KernelBench's formulas", details={"figures": compared})


def _share(right: np.ndarray, base: np.ndarray, mine: np.ndarray, n: int, p: float) -> float:
    kept_base = np.array([x for i, x in enumerate(base) if right[i]])
    kept_mine = np.array([x for i, x in enumerate(mine) if right[i]])
    return float(np.sum(kept_base / kept_mine > p) / n) if n > 0 else 0.0


def _geometric(right: np.ndarray, base: np.ndarray, mine: np.ndarray, n: int) -> float:
    ratios = np.array([x for i, x in enumerate(base) if right[i]]) / np.array(
        [x for i, x in enumerate(mine) if right[i]]
    )
    count = int(np.sum(right))
    return float(np.prod(ratios) ** (1 / count)) if count > 0 else 0.0


BAR = Bar(
    "cuda.C2",
    "fast_p and geometric mean",
    "arrays that differ",
    "0 of 10,000 random arrays, bit for bit",
    "cpu",
    0.2,
    measure,
)
