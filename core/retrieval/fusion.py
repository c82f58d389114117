"""One ranking out of several: by ranks (Cormack et al. 2009) or by scaled scores."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import DataError
from core.retrieval.hits import Hit


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Hit]], k: int = 10, *, constant: float = 60.0, weights: Sequence[float] | None = None
) -> list[Hit]:
    """The `k` best by Σ weight / (constant + rank), rank from 1; equal sums in the order of the ids.

    Args:
        rankings: several rankings of one query, best first.
        weights: of the rankings; all 1 by default.
    """
    total: dict[str, float] = {}
    for ranking, weight in zip(rankings, _weights(rankings, weights)):
        for rank, hit in enumerate(ranking, 1):
            total[hit.id] = total.get(hit.id, 0.0) + weight / (constant + rank)
    return _best(total, k)


def weighted_sum(
    rankings: Sequence[Sequence[Hit]], k: int = 10, *, weights: Sequence[float] | None = None
) -> list[Hit]:
    """The `k` best by Σ weight · score, each ranking's scores scaled to [0, 1]; a document it lacks has 0 there."""
    total: dict[str, float] = {}
    for ranking, weight in zip(rankings, _weights(rankings, weights)):
        if not ranking:
            continue
        low, high = min(h.score for h in ranking), max(h.score for h in ranking)
        for hit in ranking:
            scaled = (hit.score - low) / (high - low) if high > low else 1.0
            total[hit.id] = total.get(hit.id, 0.0) + weight * scaled
    return _best(total, k)


def _weights(rankings: Sequence[Sequence[Hit]], weights: Sequence[float] | None) -> list[float]:
    chosen = [1.0] * len(rankings) if weights is None else list(weights)
    if len(chosen) != len(rankings):
        raise DataError(f"{len(chosen)} weights for {len(rankings)} rankings", field="weights")
    return chosen


def _best(total: dict[str, float], k: int) -> list[Hit]:
    return [Hit(name, total[name]) for name in sorted(total, key=lambda name: (-total[name], name))[:k]]
