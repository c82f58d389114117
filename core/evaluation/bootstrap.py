"""Bootstrap intervals and paired tests (Efron 1979; Koehn 2004) over per-example sufficient statistics.

A corpus metric is not the mean of sentence metrics, so resampling happens on the statistics (n-gram counts, lengths,
edits) that the metric is a function of; the metric is then computed once for each resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.errors import DataError

Statistic = Callable[[np.ndarray], float]


def _resamples(rows: int, n: int, seed: int) -> np.ndarray:
    """Counts of each row in each resample, (n, rows)."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=n)


def bootstrap_ci(
    stats: np.ndarray, metric: Statistic, *, n: int = 1000, seed: int = 12345, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `metric(sum of rows)` for statistics (rows, k)."""
    stats = np.atleast_2d(np.asarray(stats, dtype=np.float64).T).T
    if len(stats) == 0:
        raise DataError("no rows to resample")
    values = [metric(total) for total in _resamples(len(stats), n, seed) @ stats]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass
class PairedResult:
    """Difference b − a of two systems, its interval, and the two-sided p value of no difference."""

    difference: float
    ci95: tuple[float, float]
    p: float


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, metric: Statistic, *, n: int = 1000, seed: int = 12345
) -> PairedResult:
    """Compare two systems on the same rows: statistics (rows, k) each.

    p counts how often the centred resampled difference is at least as large as the observed one.
    """
    a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64).T).T for x in (a, b))
    if a.shape != b.shape:
        raise DataError(f"the systems have statistics of shape {a.shape} and {b.shape}")
    observed = metric(b.sum(0)) - metric(a.sum(0))
    counts = _resamples(len(a), n, seed)
    differences = np.array([metric(y) - metric(x) for x, y in zip(counts @ a, counts @ b)])
    low, high = np.quantile(differences, [0.025, 0.975])
    extreme = np.abs(differences - differences.mean()) >= abs(observed) - 1e-12
    return PairedResult(float(observed), (float(low), float(high)), float((extreme.sum() + 1) / (n + 1)))
