"""Ranking metrics as trec_eval computes them, one value a query.

A run is sorted by score in single precision; equal scores put the larger document id first, whatever order they came
in. A document that was not judged is not relevant; grade 1 and above is. Gains are the grades themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np


def ordered(run: Iterable[tuple[str, float]]) -> list[str]:
    """Document ids, best first, as trec_eval orders them."""
    return [name for name, _ in sorted(run, key=lambda pair: (np.float32(pair[1]), pair[0]), reverse=True)]


def ndcg(ranked: list[str], judged: Mapping[str, float], cut: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `cut` documents (Järvelin and Kekäläinen 2002)."""
    ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:cut]
    best = sum(grade / np.log2(rank + 1) for rank, grade in enumerate(ideal, 1))
    gained = sum(max(0.0, judged.get(name, 0)) / np.log2(rank + 1) for rank, name in enumerate(ranked[:cut], 1))
    return float(gained / best) if best else 0.0


def recall(ranked: list[str], judged: Mapping[str, float], cut: int = 100) -> float:
    """Share of the relevant documents among the first `cut`."""
    relevant = {name for name, grade in judged.items() if grade >= 1}
    return len(relevant & set(ranked[:cut])) / len(relevant) if relevant else 0.0


def average_precision(ranked: list[str], judged: Mapping[str, float]) -> float:
    """Mean of the precision at each relevant document; those not found count 0."""
    relevant, hits, total = sum(grade >= 1 for grade in judged.values()), 0, 0.0
    for rank, name in enumerate(ranked, 1):
        if judged.get(name, 0) >= 1:
            hits += 1
            total += hits / rank
    return total / relevant if relevant else 0.0


def reciprocal_rank(ranked: list[str], judged: Mapping[str, float], cut: int | None = 10) -> float:
    """One over the rank of the first relevant document among the first `cut`, else 0."""
    return next((1 / rank for rank, name in enumerate(ranked[:cut], 1) if judged.get(name, 0) >= 1), 0.0)
