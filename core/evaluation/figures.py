"""Figures that several evaluators need: shares and means in percent, and pass@k of counts with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.evaluation.bootstrap import bootstrap_ci
from core.evaluation.passk import mean_pass_at_k
from core.evaluation.report import Metric


def share(flags: Sequence[bool], higher: bool = True) -> Metric:
    """How many of the flags are set, in percent."""
    if not flags:
        return Metric(None, 0, skipped="nothing to count", higher_is_better=higher)
    return Metric(100.0 * sum(flags) / len(flags), len(flags), unit="%", higher_is_better=higher)


def mean_percent(values: Sequence[float], nothing: str) -> Metric:
    """The mean of values in [0, 1], in percent; `nothing` says why there is none."""
    if not values:
        return Metric(None, 0, skipped=nothing)
    return Metric(100.0 * sum(values) / len(values), len(values), unit="%")


def mean_interval(values: Sequence[float]) -> Metric:
    """The mean of percentages, with its bootstrap interval."""
    interval = bootstrap_ci(np.array(values), lambda total: float(total[0]) / len(values))
    return Metric(float(np.mean(values)), len(values), interval, "%")


def pass_metric(counts: Sequence[tuple[int, int]], k: int, *, bootstrap: int = 1000, seed: int = 12345) -> Metric:
    """pass@k in percent from each problem's (samples, passed); skipped with the reason where it has no estimate."""
    if not counts:
        return Metric(None, 0, skipped="no problem could be judged")
    fewest = min(n for n, _ in counts)
    if fewest < k:
        return Metric(None, len(counts), skipped=f"needs {k} samples a problem, one has {fewest}")
    found = mean_pass_at_k(counts, k, resamples=max(1, bootstrap), seed=seed)
    ci = (100 * found.ci95[0], 100 * found.ci95[1]) if bootstrap else None
    return Metric(100 * found.value, len(counts), ci, unit="%")
