"""pass@k and its relatives: what one may expect of k samples when n were drawn and c of them pass.

The unbiased estimator of Chen et al. 2021, 1 − C(n−c, k)/C(n, k), as a product that neither overflows nor cancels. A
problem with fewer samples than k has no estimate, and asking for one is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.evaluation.bootstrap import bootstrap_ci


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples, drawn without replacement from n of which c pass, passes.

    Raises:
        DataError: k > n (no estimate exists), or counts that cannot be.
    """
    _check(n, c, k)
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Chance that all of k samples pass (Yao et al. 2024): C(c, k)/C(n, k)."""
    _check(n, c, k)
    if c < k:
        return 0.0
    return float(np.prod(1.0 - k / np.arange(c + 1, n + 1)))


def best_at_k(scores: Sequence[float], k: int) -> float:
    """Expected best score among k samples drawn without replacement from `scores`.

    The i-th smallest of n is the best of k with probability C(i−1, k−1)/C(n, k).
    """
    n = len(scores)
    _check(n, 0, k)
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    weights = np.zeros(n)
    weight = k / n
    for i in range(n, k - 1, -1):
        weights[i - 1] = weight
        if i > 1:
            weight *= (i - k) / (i - 1)
    return float(ordered @ weights)


def samples_of(predictions: Sequence[Any]) -> list[list[str]]:
    """The samples of each problem: a prediction is a text, or several. Raises `DataError` for anything else."""
    found = []
    for index, one in enumerate(predictions):
        texts = [one] if isinstance(one, str) else one
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"problem {index} has a wrong prediction", got=one, expected="a text, or a list of texts")
        if not texts:
            raise DataError(f"problem {index} has no samples")
        found.append(list(texts))
    return found


def sizes_of(k: Any) -> tuple[int, ...]:
    """The k of pass@k as they were asked for. Raises `ConfigError` unless they are numbers of at least 1."""
    sizes = tuple(k) if isinstance(k, (list, tuple)) else (k,)
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise ConfigError(f"k is {k}", where="eval.with.k", hint="give numbers of at least 1, as in k=[1,5]")
    return sizes


@dataclass(frozen=True)
class PassAtK:
    """The macro mean over problems, its bootstrap interval over problems, and each problem's own value."""

    k: int
    value: float
    ci95: tuple[float, float]
    per_problem: tuple[float, ...]


def mean_pass_at_k(
    counts: Sequence[tuple[int, int]], k: int, *, every: bool = False, resamples: int = 1000, seed: int = 12345
) -> PassAtK:
    """Mean of pass@k over problems.

    Args:
        counts: (samples, passed) of each problem. every: all k must pass (`pass_hat_k`).

    Raises:
        DataError: no problems, or one with fewer than k samples, named by its place.
    """
    if not counts:
        raise DataError("no problems to average over")
    for index, (n, _) in enumerate(counts):
        if n < k:
            raise DataError(
                f"problem {index} has {n} samples, too few for k = {k}", hint="draw more samples or ask for a smaller k"
            )
    values = np.array([(pass_hat_k if every else pass_at_k)(n, c, k) for n, c in counts])
    ci = bootstrap_ci(values, lambda total: float(total[0]) / len(values), n=resamples, seed=seed)
    return PassAtK(k, float(values.mean()), ci, tuple(values.tolist()))


def _check(n: int, c: int, k: int) -> None:
    if k < 1 or n < 1 or not 0 <= c <= n:
        raise DataError(f"cannot estimate with n = {n}, c = {c}, k = {k}", expected="1 ≤ k, 0 ≤ c ≤ n")
    if k > n:
        raise DataError(f"{n} samples are too few for k = {k}", hint="draw more samples or ask for a smaller k")
