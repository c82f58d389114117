"""Which passages stand before a question: found by words, by vectors or by both, and cut to the sentences that matter.

Expansion adds the words that weigh most in the passages found first (pseudo-relevance feedback, Rocchio 1971). Nothing
here knows of language models: vectors come from a function that is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from core.errors import ConfigError
from core.retrieval import Bm25Index, DenseIndex, reciprocal_rank_fusion
from core.retrieval.words import plain

Retrieval = Literal["bm25", "dense", "hybrid"]
Embed = Callable[..., Any]
"""`embed(texts, kind="query" or "document")` → vectors (n, d), as an `EmbeddingPipeline` gives them."""
DEPTH, FEEDBACK = 100, 3
_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])")


class Passages:
    """An index over passages.

    Args:
        texts: at least one. embed: needed for dense and hybrid retrieval.
    """

    def __init__(self, texts: Sequence[str], embed: Embed | None = None) -> None:
        ids = [str(number) for number in range(len(texts))]
        self.texts, self.embed = list(texts), embed
        self.words = Bm25Index(ids, self.texts)
        self.vectors = None if embed is None else DenseIndex(ids, embed(self.texts, kind="document"))

    def search(self, question: str, k: int, how: Retrieval = "bm25", expand: int = 0) -> list[int]:
        """Numbers of the `k` best passages; of both rankings by their ranks where `how` is hybrid.

        Args:
            expand: words added to the lexical query.

        Raises:
            ConfigError: dense search without vectors.
        """
        if how != "bm25" and (self.vectors is None or self.embed is None):
            raise ConfigError(f"{how} retrieval needs vectors", where="retrieval", hint="use(corpus=…, embed=…)")
        rankings = []
        if how != "dense":
            rankings += self.words.search([self.expanded(question, expand)], max(k, DEPTH))
        if self.vectors is not None and self.embed is not None and how != "bm25":
            rankings += self.vectors.search(self.embed([question], kind="query"), max(k, DEPTH))
        return [int(hit.id) for hit in reciprocal_rank_fusion(rankings, k)]

    def expanded(self, question: str, count: int) -> str:
        """The question and the `count` words of the largest weight in what it finds first."""
        first = [int(hit.id) for hit in self.words.search([question], FEEDBACK)[0]] if count else []
        if not first:
            return question
        weight = np.asarray(self.words.weights[:, first].sum(axis=1)).ravel()
        names, asked = list(self.words.vocabulary), set(plain(question))
        best = [names[i] for i in np.argsort(-weight, kind="stable") if weight[i] > 0 and names[i] not in asked]
        return " ".join([question, *best[:count]])


def sentences(text: str) -> list[str]:
    """The sentences of a passage."""
    return [part for part in _ENDS.split(" ".join(text.split())) if part]


def snippets(question: str, passages: Sequence[str], count: int) -> tuple[str, ...]:
    """The passages without all but their `count` sentences nearest to the question, which keep their order."""
    parts = [(number, part) for number, text in enumerate(passages) for part in sentences(text)]
    if not parts:
        return tuple(passages)
    index = Bm25Index([f"{i:05d}" for i in range(len(parts))], [part for _, part in parts])
    kept = {int(hit.id) for hit in index.search([question], count)[0]}
    kept |= set(range(len(parts))[: max(0, count - len(kept))])
    found: dict[int, list[str]] = {}
    for place in sorted(kept):
        number, part = parts[place]
        found.setdefault(number, []).append(part)
    return tuple(" ".join(lines) for lines in found.values())
