"""Approximate nearest neighbours through faiss: a navigable graph (Malkov and Yashunin 2018) or inverted lists.

For collections where an exact search is too slow. What the structure finds is scored again on its own vectors, so that
scores are comparable with those of the exact index; which documents are found is approximate, and `recall` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import BackendUnavailable, ConfigError
from core.retrieval import store
from core.retrieval.dense import DenseIndex


class AnnIndex(DenseIndex):
    """A `DenseIndex` that looks at a part of its documents.

    Args:
        structure: "hnsw" or "ivf". links: neighbours a node of the graph keeps. lists: of the inverted file; the square
            root of n by default. effort: candidates (hnsw) or lists (ivf) that a search visits.

    Raises:
        BackendUnavailable: faiss is not installed.
    """

    kind = "ann"

    def __init__(
        self,
        ids: Sequence[str],
        vectors: Any,
        *,
        metric: Literal["cosine", "dot"] = "cosine",
        structure: Literal["hnsw", "ivf"] = "hnsw",
        links: int = 32,
        lists: int | None = None,
        effort: int = 64,
    ) -> None:
        super().__init__(ids, vectors, metric=metric)
        if structure not in ("hnsw", "ivf"):
            raise ConfigError(f"unknown structure '{structure}'", hint="hnsw or ivf")
        self.structure, self.effort = structure, effort
        self.faiss = self._built(structure, links, lists)

    def _built(self, structure: str, links: int, lists: int | None) -> Any:
        faiss = _faiss()
        inner = faiss.METRIC_INNER_PRODUCT
        if structure == "hnsw":
            built = faiss.IndexHNSWFlat(self.dimension, links, inner)
            built.hnsw.efConstruction = max(40, 2 * links)
        else:
            count = lists or max(1, int(len(self) ** 0.5))
            built = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.dimension), self.dimension, count, inner)
            built.train(self._unit(self.vectors))
        built.add(self._unit(self.vectors))
        return built

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        array = np.array(vectors, dtype=np.float32)
        if self.metric == "cosine":
            array /= np.linalg.norm(array, axis=1, keepdims=True)
        return array

    def add(self, ids: Sequence[str], vectors: Any) -> None:
        super().add(ids, vectors)
        self.faiss.add(self._unit(self.vectors[self.faiss.ntotal :]))

    def _shortlists(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        if self.structure == "hnsw":
            self.faiss.hnsw.efSearch = max(self.effort, k)
        else:
            self.faiss.nprobe = self.effort
        _, found = self.faiss.search(queries.astype(np.float32), min(len(self), k + 10))
        lists = [row[row >= 0] for row in found]
        # A search that visits too little may return fewer than k; the first documents fill up, at their true score.
        return [row if len(row) >= k else np.union1d(row, np.arange(k)) for row in lists]

    def recall(self, queries: Any, k: int = 10) -> float:
        """Share of the exact `k` nearest documents that are found."""
        exact = DenseIndex(self.ids, self.vectors, metric=self.metric).nearest(queries, k)[0]
        found = self.nearest(queries, k)[0]
        return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, found)]))

    def save(self, path: str | Path) -> None:
        head = {"kind": self.kind, "metric": self.metric, "structure": self.structure, "effort": self.effort}
        write = {"faiss.bin": lambda place: _faiss().write_index(self.faiss, place)}
        store.save(path, head, self.ids, {"vectors": self.vectors, "lengths": self.lengths}, files=write)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> AnnIndex:
        index = super().load(path, device=device)
        head = store.head_of(Path(path))
        index.structure, index.effort = head["structure"], head["effort"]  # type: ignore[attr-defined]
        index.faiss = _faiss().read_index(str(Path(path) / "faiss.bin"))  # type: ignore[attr-defined]
        return index  # type: ignore[return-value]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise BackendUnavailable(
            "faiss is not installed", hint="pip install 'graft[embeddings]', or use DenseIndex, which is exact"
        ) from error
    return faiss
