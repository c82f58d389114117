"""Exact nearest neighbours of vectors, in blocks, on any device.

Scores are computed in the device's fast precision and only shortlist; the shortlist is scored again in float64, so
that the order is the one of exact arithmetic, whatever the block size and the device. Documents too close to the
shortlist's edge to be told apart in that precision are all taken into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import ConfigError, DataError
from core.retrieval import store
from core.retrieval.hits import Hit, best, checked_ids, checked_k, order_of

SPARE = 22
"""Documents beyond k that are scored again."""


class DenseIndex:
    """An exact index over vectors.

    Args:
        ids: one a document. vectors: (n, d) floating point; a memory map is read block by block.
        metric: "cosine" divides by the lengths, "dot" does not.
        device: where blocks are multiplied, "cpu" or "cuda". block: documents multiplied at one time.

    Raises:
        DataError: shapes that differ, a vector that is not finite or, for cosine, zero.
    """

    kind = "dense"

    def __init__(
        self,
        ids: Sequence[str],
        vectors: Any,
        *,
        metric: Literal["cosine", "dot"] = "cosine",
        device: str = "cpu",
        block: int = 16384,
    ) -> None:
        if metric not in ("cosine", "dot"):
            raise ConfigError(f"unknown metric '{metric}'", hint="cosine or dot")
        self.vectors, self.metric, self.device, self.block = checked_vectors(vectors), metric, device, block
        self.ids = checked_ids(ids, len(self.vectors))
        if not self.ids:
            raise DataError("there are no documents to index")
        self.lengths = self._measured(self.vectors)
        self.places = order_of(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    def _measured(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) lengths in float64; finite and, for cosine, not zero."""
        parts = [vectors[i : i + self.block].astype(np.float64) for i in range(0, len(vectors), self.block)]
        lengths = np.concatenate([np.sqrt((part * part).sum(1)) for part in parts]) if parts else np.zeros(0)
        bad = np.flatnonzero(~np.isfinite(lengths) | ((lengths == 0) & (self.metric == "cosine")))
        if len(bad):
            raise DataError(
                f"{len(bad)} vectors are zero or not finite, first: {bad[:5].tolist()}",
                field="vectors",
                hint="an empty text or an overflow made them",
            )
        return lengths

    def add(self, ids: Sequence[str], vectors: Any) -> None:
        """More documents. Raises `DataError` for another dimension or an id that is there already."""
        more = checked_vectors(vectors)
        self._fits(more, "documents")
        together = checked_ids([*self.ids, *ids], len(self.vectors) + len(more))
        lengths = self._measured(more)
        self.vectors = np.concatenate([self.vectors, more.astype(self.vectors.dtype)])
        self.ids, self.lengths = together, np.concatenate([self.lengths, lengths])
        self.places = order_of(self.ids)

    def _fits(self, vectors: np.ndarray, what: str) -> None:
        if vectors.shape[1] != self.dimension:
            raise DataError(
                f"the {what} have {vectors.shape[1]} dimensions, the index has {self.dimension}",
                hint="encode both with one model, cut to the same length",
            )

    # ---- search ------------------------------------------------------------------------------------------------

    def search(self, queries: Any, k: int = 10) -> list[list[Hit]]:
        """The `k` nearest documents of each query vector (q, d)."""
        positions, scores = self.nearest(queries, k)
        return [[Hit(self.ids[p], float(s)) for p, s in zip(row, values)] for row, values in zip(positions, scores)]

    def nearest(self, queries: Any, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Positions (q, min(k, n)) and float64 scores of the nearest documents.

        Raises:
            DataError: another dimension, or a query that is zero or not finite.
        """
        checked_k(k)
        asked = checked_vectors(queries)
        self._fits(asked, "queries")
        asked = asked.astype(np.float64)
        lengths = np.sqrt((asked * asked).sum(1, keepdims=True))
        if len(asked) and not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise DataError("a query vector is zero or not finite", got=int(np.argmin(lengths)))
        if self.metric == "cosine":
            asked = asked / np.where(lengths > 0, lengths, 1)
        k = min(k, len(self))
        positions, scores = np.empty((len(asked), k), np.int64), np.empty((len(asked), k))
        for start in range(0, len(asked), 512):
            part = asked[start : start + 512]
            for row, shortlist in enumerate(self._shortlists(part, k)):
                exact = self._exact(part[row], shortlist)
                chosen = best(exact, self.places[shortlist], k)
                positions[start + row], scores[start + row] = shortlist[chosen], exact[chosen]
        return positions, scores

    def _exact(self, query: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        values = (self.vectors[chosen].astype(np.float64) * query).sum(1)
        return values / self.lengths[chosen] if self.metric == "cosine" else values

    def _shortlists(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """For each query the positions that may be among its `k` best."""
        import torch

        given = torch.from_numpy(queries.astype(np.float32)).to(self.device)
        values: list[Any] = []
        places: list[Any] = []
        for start, block, largest in self._blocks():
            scores = given @ block.T
            # Rounding of a float32 dot product, generously.
            slack = 1e-6 * self.dimension**0.5 * largest * float(given.norm(dim=1).max())
            size = min(k + SPARE, scores.shape[1])
            top = scores.topk(size, dim=1)
            edge = top.values[:, min(k, size) - 1 : min(k, size)] - 2 * slack
            crowded = (scores >= edge).sum(1) > size
            values.append(top.values.cpu().numpy())
            places.append((top.indices + start).cpu().numpy())
            for row in crowded.nonzero().flatten().tolist():
                near = (scores[row] >= edge[row]).nonzero().flatten()
                values.append((row, scores[row, near].cpu().numpy()))
                places.append((row, (near + start).cpu().numpy()))
        return [self._edge_of(row, values, places, k, slack) for row in range(len(queries))]

    @staticmethod
    def _edge_of(row: int, values: list[Any], places: list[Any], k: int, slack: float) -> np.ndarray:
        """The union of the blocks' shortlists of one query, without what is surely below its `k` best."""
        own, own_places = [], []
        for score, place in zip(values, places):
            if isinstance(score, tuple):
                if score[0] == row:
                    own.append(score[1])
                    own_places.append(place[1])
            else:
                own.append(score[row])
                own_places.append(place[row])
        found, first = np.unique(np.concatenate(own_places), return_index=True)
        scores = np.concatenate(own)[first]
        if len(scores) > k:
            scores_kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k] - 2 * slack
            return found[scores_kept]
        return found

    def _blocks(self) -> Iterator[tuple[int, Any, float]]:
        """(first position, block (m, d) in float32 on the device, length of its longest vector)."""
        import torch

        for start in range(0, len(self), self.block):
            part = np.ascontiguousarray(self.vectors[start : start + self.block], dtype=np.float32)
            lengths = self.lengths[start : start + self.block]
            if self.metric == "cosine":
                part = part / lengths[:, None].astype(np.float32)
                yield start, torch.from_numpy(part).to(self.device), 1.0
            else:
                yield start, torch.from_numpy(np.array(part)).to(self.device), float(lengths.max())

    # ---- folders -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the index as a folder that `load_index` opens memory-mapped."""
        store.save(
            path,
            {"kind": self.kind, "metric": self.metric},
            self.ids,
            {"vectors": self.vectors, "lengths": self.lengths},
        )

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> DenseIndex:
        """Open what `save` wrote; vectors stay on disk and are read block by block."""
        head, ids, arrays, _ = store.load(path, cls.kind)
        index = cls.__new__(cls)
        index.ids, index.metric, index.device, index.block = ids, head["metric"], device, 16384
        index.vectors, index.lengths, index.places = arrays["vectors"], arrays["lengths"], order_of(ids)
        return index


def checked_vectors(vectors: Any) -> np.ndarray:
    """`vectors` as a (n, d) floating array. Raises `DataError` for another shape."""
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().float().cpu().numpy()
    array = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError("vectors have the shape (documents, dimensions)", field="vectors", got=array.shape)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float32)
