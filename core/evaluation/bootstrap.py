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


def _table(stats: np.ndarray) -> np.ndarray:
    """Statistics as (rows, k); one number a row is k = 1."""
    stats = np.asarray(stats, dtype=np.float64)
    return stats[:, None] if stats.ndim == 1 else stats


def _totals(stats: np.ndarray, n: int, seed: int, cells: int = 10_000_000) -> np.ndarray:
    """Sums of the statistics of each resample, (n, k). Counts are drawn in parts, so that memory stays bounded."""
    rows, generator = len(stats), np.random.default_rng(seed)
    size = max(1, cells // rows)
    parts = []
    for start in range(0, n, size):
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(size, n - start))
        parts.append(counts.astype(np.float64) @ stats)
    return np.concatenate(parts)


def bootstrap_ci(
    stats: np.ndarray, metric: Statistic, *, n: int = 1000, seed: int = 12345, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `metric(sum of rows)` for statistics (rows, k). Raises `DataError` without rows."""
    stats = _table(stats)
    if len(stats) == 0:
        raise DataError("no rows to resample")
    values = [metric(total) for total in _totals(stats, n, seed)]
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
    a, b = _table(a), _table(b)
    if a.shape != b.shape:
        raise DataError(f"the systems have statistics of shape {a.shape} and {b.shape}")
    if len(a) == 0:
        raise DataError("no rows to resample")
    observed = metric(b.sum(0)) - metric(a.sum(0))
    totals = _totals(np.hstack([a, b]), n, seed)
    differences = np.array([metric(total[a.shape[1] :]) - metric(total[: a.shape[1]]) for total in totals])
    low, high = np.quantile(differences, [0.025, 0.975])
    extreme = np.abs(differences - differences.mean()) >= abs(observed) - 1e-12
    return PairedResult(float(observed), (float(low), float(high)), float((extreme.sum() + 1) / (n + 1)))
