"""What a search gives back, and the one order in which equal scores come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.errors import DataError


class Hit(NamedTuple):
    """A document that was found: its id and its score, higher is nearer."""

    id: str
    score: float


def checked_ids(ids: Sequence[str], count: int) -> list[str]:
    """`ids` as a list of distinct strings, one for each of `count` documents.

    Raises:
        DataError: an id that is no string or stands twice, or a count that differs.
    """
    ids = list(ids)
    if len(ids) != count:
        raise DataError(f"{len(ids)} ids for {count} documents", hint="one id belongs to each document, in order")
    seen: dict[str, int] = {}
    for place, name in enumerate(ids):
        if not isinstance(name, str):
            raise DataError("a document id is a string", field=f"ids[{place}]", got=name)
        if name in seen:
            raise DataError(f"the id '{name}' stands at documents {seen[name]} and {place}", field="ids")
        seen[name] = place
    return ids


def order_of(ids: Sequence[str]) -> np.ndarray:
    """(n,) place of each id among the sorted ids: what decides between equal scores."""
    places = np.empty(len(ids), dtype=np.int64)
    places[np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)] = np.arange(len(ids))
    return places


def best(scores: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """Positions of the `k` largest of `scores` (m,), equal ones by `places` (m,), without sorting all of them."""
    if k < len(scores):
        floor = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= floor)
    else:
        chosen = np.arange(len(scores))
    return chosen[np.lexsort((places[chosen], -scores[chosen]))][:k]


def checked_k(k: int) -> int:
    """`k` when it can be searched for. Raises `DataError` otherwise."""
    if not isinstance(k, int) or k < 1:
        raise DataError("k is a whole number from 1 on", field="k", got=k)
    return k
