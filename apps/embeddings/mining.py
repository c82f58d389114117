"""Hard negatives that know the positive (Moreira et al. 2024): near to the query, but clearly less so than its answer.

Of the documents nearest to a query those are left out that are its positives, and those whose score exceeds the share
`1 − margin` of the positive's; the nearest of the others are the negatives. The teacher gives vectors, or is BM25 where
there is no model yet. Documents are searched block by block, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import DataError
from core.retrieval import Bm25Index, DenseIndex

Encode = Callable[[Sequence[str], str], np.ndarray]
"""(texts, "query" or "document") → vectors."""


@dataclass(frozen=True)
class Mined:
    """Numbers of the negatives of each query, best first; and what was left out on the way."""

    negatives: list[list[int]]
    too_near: int
    short: int


def chosen_negatives(
    candidates: np.ndarray, scores: np.ndarray, excluded: Sequence[Any], reached: np.ndarray,
    *, count: int, margin: float | None = 0.05,
) -> Mined:  # fmt: skip
    """Negatives from a ranking.

    Args:
        candidates, scores: (q, k) documents and their scores, best first; −1 stands for none.
        excluded: documents that are no negatives of a query: its positives. reached: (q,) score of its worst positive.
        count: negatives a query. margin: share of the positive's score that a negative stays below; None: any.
    """
    negatives, too_near, short = [], 0, 0
    for row, own in enumerate(excluded):
        bounded = margin is not None and np.isfinite(reached[row])
        limit = reached[row] - abs(reached[row]) * margin if bounded else np.inf
        kept = []
        for document, score in zip(candidates[row], scores[row]):
            if document < 0 or document in own:
                continue
            if score > limit:
                too_near += 1
                continue
            kept.append(int(document))
        short += len(kept) < count
        negatives.append(kept[:count])
    return Mined(negatives, too_near, short)


def mine(
    queries: Sequence[str],
    documents: Sequence[str],
    positives: Sequence[Sequence[int]],
    *,
    excluded: Sequence[Any] | None = None,
    teacher: Encode | None = None,
    count: int = 7,
    margin: float | None = 0.05,
    depth: int | None = None,
    device: str = "cpu",
) -> Mined:
    """Negatives of each query among `documents`.

    Args:
        positives: document numbers of each query; at least one. excluded: more documents that are no negatives of it,
            positives included; the positives by default. teacher: None takes BM25. depth: how far down the
            ranking is read; ten times `count` and the positives by default.

    Raises:
        DataError: no documents, or a query without a positive.
    """
    if not documents:
        raise DataError("there are no documents to mine negatives from")
    without = [row for row, own in enumerate(positives) if not own]
    if without:
        raise DataError(f"{len(without)} queries have no positive, first: {without[:5]}")
    excluded = [set(own) for own in (positives if excluded is None else excluded)]
    depth = min(len(documents), depth or 10 * count + max(len(own) for own in excluded))
    ids = [str(number) for number in range(len(documents))]
    if teacher is None:
        return _by_words(queries, documents, positives, excluded, count, margin, depth, ids)
    vectors, asked = teacher(documents, "document"), teacher(queries, "query")
    candidates, scores = DenseIndex(ids, vectors, device=device).nearest(asked, depth)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors.astype(float), asked.astype(float))]
    reached = np.array([min(unit[0][own] @ unit[1][row]) for row, own in enumerate(map(list, positives))])
    return chosen_negatives(candidates, scores, excluded, reached, count=count, margin=margin)


def _by_words(
    queries: Any, documents: Any, positives: Any, excluded: Any, count: int, margin: Any, depth: int, ids: Any
) -> Mined:
    index = Bm25Index(ids, documents)
    candidates, scores = np.full((len(queries), depth), -1), np.full((len(queries), depth), -np.inf)
    reached = np.empty(len(queries))
    for start in range(0, len(queries), 256):
        part = queries[start : start + 256]
        everything = index.scores(part)
        for row, hits in enumerate(index.search(part, depth)):
            candidates[start + row, : len(hits)] = [int(hit.id) for hit in hits]
            scores[start + row, : len(hits)] = [hit.score for hit in hits]
            reached[start + row] = everything[row, list(positives[start + row])].min()
    # A positive that shares no word with its query says nothing about how near is too near.
    reached[reached <= 0] = np.inf
    return chosen_negatives(candidates, scores, excluded, reached, count=count, margin=margin)
