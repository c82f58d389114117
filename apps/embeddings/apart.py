"""Training examples that repeat held-out ones, word for word or nearly so, are left out.

Two texts are near when the Jaccard similarity of their sets of five-character pieces reaches a threshold. It is exact:
common pieces are counted by a product of sparse matrices, block by block, where sketches would estimate. What is
compared is what an example asks: the text of a query or of a class, both sentences of a pair. Documents may be shared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.embeddings.example import EmbeddingExample

PIECE, BLOCK = 5, 2048


def apart(
    train: Sequence[EmbeddingExample], held_out: Sequence[EmbeddingExample], threshold: float
) -> list[EmbeddingExample]:
    """The examples of `train` that are like none of `held_out`, in order."""
    asked = [example for example in held_out if example.kind != "document"]
    if not asked or not train:
        return list(train)
    near = repeats([asks(example) for example in train], [asks(example) for example in asked], threshold)
    return [example for example, out in zip(train, near) if not out]


def asks(example: EmbeddingExample) -> str:
    """What is compared of an example; the sentences of a pair in either order give the same."""
    return "\n".join(sorted((example.text, example.text2))) if example.text2 is not None else example.text


def repeats(texts: Sequence[str], others: Sequence[str], threshold: float) -> np.ndarray:
    """(n,) whether a text is as similar as `threshold` to one of `others`; equal texts always are."""
    places: dict[str, int] = {}
    left, right = (_pieces(part, places) for part in (texts, others))
    sizes, found = (np.diff(right.indptr), np.zeros(len(texts), bool))
    right = _wide(right, len(places)).T.tocsc()
    for start in range(0, len(texts), BLOCK):
        block = _wide(left[start : start + BLOCK], len(places))
        common = (block @ right).tocoo()
        own = np.diff(block.indptr)
        either = own[common.row] + sizes[common.col] - common.data
        found[start + common.row[common.data >= threshold * either - 1e-9]] = True
    return found


def _pieces(texts: Sequence[str], places: dict[str, int]) -> Any:
    """A row of ones for each text, a column for each piece; new pieces are added to `places`."""
    from scipy.sparse import csr_matrix

    rows = []
    for text in texts:
        plain = " ".join(re.findall(r"\w+", text.lower())) or text
        rows.append({plain[i : i + PIECE] for i in range(max(1, len(plain) - PIECE + 1))})
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((places.setdefault(piece, len(places)) for row in rows for piece in sorted(row)), np.int64)
    return csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(texts), len(places)))


def _wide(matrix: Any, columns: int) -> Any:
    """The same rows with room for pieces that were met later."""
    matrix = matrix.copy()
    matrix.resize(matrix.shape[0], columns)
    return matrix
