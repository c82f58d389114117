"""BM25 (Robertson et al. 1994) with Lucene's idf, as one product of sparse matrices.

The weight of a word in a document is known when the index is built, so a search is `queries (q, words) × weights
(words, documents)`: no loop over documents or postings. idf = ln(1 + (N - n + ½) / (n + ½)) is never negative, and
the constant factor k1 + 1 is left out, as Lucene does; it changes no order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.retrieval import store
from core.retrieval.hits import Hit, best, checked_ids, checked_k, order_of
from core.retrieval.words import words_by

BLOCK = 256
"""Queries scored at one time."""


class Bm25Index:
    """A lexical index over texts.

    Args:
        ids, texts: one of each a document.
        k1: how soon a repeated word stops counting. b: how much long documents are discounted, 0 to 1.
        words: "plain" or "code", or a function from text to words (such an index cannot be saved).

    Raises:
        DataError: no documents, ids that repeat. ConfigError: k1 or b out of range.
    """

    kind = "bm25"

    def __init__(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        *,
        k1: float = 1.2,
        b: float = 0.75,
        words: str | Callable[[str], list[str]] = "plain",
    ) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError("BM25 takes k1 ≥ 0 and b from 0 to 1", where=f"k1={k1}, b={b}")
        if not texts:
            raise DataError("there are no documents to index")
        self.ids, self.k1, self.b, self.words = checked_ids(ids, len(texts)), k1, b, words
        self.vocabulary, self.weights = self._weigh([Counter(self._cut(text)) for text in texts])
        self.places = order_of(self.ids)

    def _cut(self, text: str) -> list[str]:
        return (words_by(self.words) if isinstance(self.words, str) else self.words)(text)

    def _weigh(self, counts: list[Counter[str]]) -> tuple[dict[str, int], Any]:
        from scipy.sparse import csr_matrix

        vocabulary = {word: place for place, word in enumerate(sorted({w for c in counts for w in c}))}
        rows = np.fromiter((vocabulary[w] for c in counts for w in c), np.int64)
        columns = np.repeat(np.arange(len(counts)), [len(c) for c in counts])
        often = np.fromiter((n for c in counts for n in c.values()), np.float64)
        lengths = np.array([sum(c.values()) for c in counts], np.float64)
        mean = lengths.mean() or 1.0
        holding = np.bincount(rows, minlength=len(vocabulary)).astype(np.float64)
        idf = np.log1p((len(counts) - holding + 0.5) / (holding + 0.5))
        damping = self.k1 * (1 - self.b + self.b * lengths / mean)
        values = idf[rows] * often / (often + damping[columns])
        return vocabulary, csr_matrix((values, (rows, columns)), shape=(len(vocabulary), len(counts)))

    def __len__(self) -> int:
        return len(self.ids)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(q, n) float64 scores of all documents. A word that stands twice in a query counts twice."""
        from scipy.sparse import csr_matrix

        counts = [Counter(w for w in self._cut(q) if w in self.vocabulary) for q in queries]
        ends = np.cumsum([0, *(len(c) for c in counts)])
        columns = np.fromiter((self.vocabulary[w] for c in counts for w in sorted(c)), np.int64)
        values = np.fromiter((c[w] for c in counts for w in sorted(c)), np.float64)
        asked = csr_matrix((values, columns, ends), shape=(len(counts), len(self.vocabulary)))
        return (asked @ self.weights).toarray()

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """At most `k` hits a query, only documents that share a word with it."""
        checked_k(k)
        if isinstance(queries, str):
            raise DataError("search takes a list of queries", got=queries, hint="give [query]")
        found = []
        for start in range(0, len(queries), BLOCK):
            for row in self.scores(queries[start : start + BLOCK]):
                sharing = np.flatnonzero(row > 0)
                chosen = sharing[best(row[sharing], self.places[sharing], k)] if len(sharing) else sharing
                found.append([Hit(self.ids[i], float(row[i])) for i in chosen])
        return found

    # ---- folders -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the index as a folder that `load_index` opens memory-mapped."""
        if not isinstance(self.words, str):
            raise ConfigError("an index with its own word function cannot be saved", hint="use words='plain' or 'code'")
        store.save(
            path,
            {"kind": self.kind, "k1": self.k1, "b": self.b, "words": self.words},
            self.ids,
            {"data": self.weights.data, "indices": self.weights.indices, "indptr": self.weights.indptr},
            {"vocabulary": list(self.vocabulary)},
        )

    @classmethod
    def load(cls, path: str | Path) -> Bm25Index:
        """Open what `save` wrote; the weights stay on disk until a search reads them."""
        from scipy.sparse import csr_matrix

        head, ids, arrays, texts = store.load(path, cls.kind)
        index = cls.__new__(cls)
        index.ids, index.k1, index.b, index.words = ids, head["k1"], head["b"], head["words"]
        index.vocabulary = {word: place for place, word in enumerate(texts["vocabulary"])}
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        index.weights = csr_matrix(parts, shape=(len(index.vocabulary), len(ids)), copy=False)
        index.places = order_of(ids)
        return index
