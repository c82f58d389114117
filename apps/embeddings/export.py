"""Smaller vectors: leading dimensions, bytes, bits; and what each costs in search quality.

`int8` stores each dimension as one byte between the least and the largest value of a calibration set; `binary` stores
its sign, eight dimensions a byte. Both find candidates that are scored again with the query's own float vector
(Yamada et al. 2021), and `table` says how much of the exact result is kept at how many bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.embeddings.pipeline import cut_to
from core.errors import ConfigError, DataError
from core.retrieval import Hit, store
from core.retrieval.hits import best, checked_ids, checked_k, order_of

Precision = Literal["int8", "binary"]


@dataclass(frozen=True)
class Codes:
    """Vectors in a small format.

    Args:
        values: (n, d) int8, or (n, ⌈d / 8⌉) uint8 of signs. low, step: (d,) of int8: value = low + step · (code + 128).
        dimension: d.
    """

    values: np.ndarray
    precision: Precision
    dimension: int
    low: np.ndarray
    step: np.ndarray

    def to_float(self, rows: Any = slice(None)) -> np.ndarray:
        """(n, d) float32: bytes as the values they stand for, bits as ±1."""
        part = self.values[rows]
        if self.precision == "int8":
            return self.low + self.step * (part.astype(np.float32) + 128)
        return np.unpackbits(part, axis=-1, count=self.dimension).astype(np.float32) * 2 - 1


def coded(vectors: np.ndarray, precision: Precision, calibration: np.ndarray | None = None) -> Codes:
    """Vectors (n, d) as bytes or bits.

    Args:
        calibration: (m, d) vectors whose range the bytes cover; the vectors themselves by default.

    Raises:
        ConfigError: an unknown precision. DataError: no finite vectors, or a calibration set of another width.
    """
    if precision not in ("int8", "binary"):
        raise ConfigError(f"unknown precision '{precision}'", hint="int8 or binary")
    vectors = np.asarray(vectors)
    given = vectors if calibration is None else np.asarray(calibration)
    if vectors.size == 0:
        raise DataError("there are no vectors to encode")
    if vectors.ndim != 2 or given.ndim != 2 or vectors.shape[1] != given.shape[1]:
        got = f"{vectors.shape}, {given.shape}"
        raise DataError("vectors are rows of a table, of one width with the calibration set", got=got)
    if not (np.isfinite(vectors).all() and np.isfinite(given).all()):
        raise DataError("there are vectors that are not finite")
    low = given.min(0).astype(np.float32)
    step = np.maximum((given.max(0) - low) / 255, 1e-12).astype(np.float32)
    if precision == "binary":
        return Codes(np.packbits(vectors > 0, axis=-1), precision, vectors.shape[1], low, step)
    steps = np.clip(np.rint((vectors - low) / step), 0, 255)
    return Codes((steps - 128).astype(np.int8), precision, vectors.shape[1], low, step)


class CodedIndex:
    """Search in bytes or bits: `oversample` · k candidates by code, scored again by the query's float vector.

    Args:
        ids: one a document. codes: of the documents.
    """

    def __init__(self, ids: Sequence[str], codes: Codes, oversample: int = 4) -> None:
        self.ids, self.codes, self.oversample = checked_ids(ids, len(codes.values)), codes, oversample
        self.places = order_of(self.ids)

    @property
    def bytes(self) -> int:
        """Size of the stored vectors."""
        return self.codes.values.nbytes

    def search(self, queries: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The `k` documents of largest dot product with each query (q, d), of those that the codes suggest."""
        checked_k(k)
        queries = np.atleast_2d(np.asarray(queries))
        if queries.shape[1] != self.codes.dimension:
            raise DataError(f"the queries have {queries.shape[1]} dimensions, the index has {self.codes.dimension}")
        found = []
        for query in queries.astype(np.float32):
            near = best(self._coarse(query), self.places, min(len(self.ids), k * self.oversample))
            exact = self.codes.to_float(near) @ query
            chosen = best(exact, self.places[near], k)
            found.append([Hit(self.ids[near[i]], float(exact[i])) for i in chosen])
        return found

    def _coarse(self, query: np.ndarray) -> np.ndarray:
        if self.codes.precision == "int8":
            return self.codes.to_float() @ query
        differing = np.bitwise_xor(self.codes.values, np.packbits(query > 0))
        return -np.bitwise_count(differing).sum(1).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write codes and ids as a folder."""
        head = {"kind": "coded", "precision": self.codes.precision, "dimension": self.codes.dimension}
        arrays = {"values": self.codes.values, "low": self.codes.low, "step": self.codes.step}
        store.save(path, {**head, "oversample": self.oversample}, self.ids, arrays)

    @classmethod
    def load(cls, path: str | Path) -> CodedIndex:
        """Open what `save` wrote, memory-mapped."""
        head, ids, arrays, _ = store.load(path, "coded")
        codes = Codes(arrays["values"], head["precision"], head["dimension"], arrays["low"], arrays["step"])
        return cls(ids, codes, head["oversample"])


def table(documents: np.ndarray, queries: np.ndarray, sizes: Sequence[int] = (), k: int = 10) -> list[dict[str, Any]]:
    """How much of the exact `k` nearest each format keeps: rows of {format, dimensions, bytes, kept}."""
    from core.retrieval import DenseIndex

    ids = [str(number) for number in range(len(documents))]
    exact = [{hit.id for hit in row} for row in DenseIndex(ids, documents).search(queries, k)]
    rows = []
    for size in (documents.shape[1], *sizes):
        cut, asked = cut_to(documents, size), cut_to(queries, size)
        indexes: dict[str, Any] = {"float32": DenseIndex(ids, cut)}
        indexes |= {p: CodedIndex(ids, coded(cut, p)) for p in ("int8", "binary")}  # type: ignore[arg-type]
        for name, index in indexes.items():
            found = index.search(asked, k)
            kept = np.mean([len(right & {hit.id for hit in row}) / len(right) for right, row in zip(exact, found)])
            held = index.bytes if isinstance(index, CodedIndex) else cut.astype(np.float32).nbytes
            rows.append({"format": name, "dimensions": size, "bytes": held // len(ids), "kept": float(kept)})
    return rows
