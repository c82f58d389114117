"""Questions that were answered before, and the tools that answered them: what a retriever may ask instead of guess.

The nearest remembered questions of a new one vote for their tools (k nearest neighbours, Cover and Hart 1967): near in
words by BM25, near in meaning by the model's vectors, each kind with votes that sum to 1. A tool that users ask for in
words that its description lacks is found this way, without training anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from core.config.files import read_json, write_json
from core.errors import DataError
from core.retrieval import Bm25Index, DenseIndex, Hit, load_index

SHARPNESS = {"words": 0.3, "meaning": 10.0}
"""A vote is exp(sharpness · (score − best score)): BM25's scores are far apart, cosines close together."""


class Memory:
    """Remembered questions.

    Args:
        questions, tools: each question and the ids of its right tools. vectors: (n, d) of the questions, where there is
            a model.

    Raises:
        DataError: nothing to remember.
    """

    def __init__(self, questions: Sequence[str], tools: Sequence[Sequence[str]], vectors: Any = None) -> None:
        if not questions:
            raise DataError("there are no answered questions to remember")
        self.tools = [list(names) for names in tools]
        ids = [str(number) for number in range(len(questions))]
        self.words = Bm25Index(ids, list(questions), words="code")
        self.meaning = None if vectors is None else DenseIndex(ids, vectors)

    def __len__(self) -> int:
        return len(self.tools)

    def votes(self, words: Sequence[str], vectors: Any, neighbours: int) -> list[list[Hit]]:
        """For each question the tools that its `neighbours` nearest remembered ones took, most votes first.

        Args:
            words: the questions as BM25 reads them. vectors: (n, d) of them; None asks by words alone.
        """
        totals: list[dict[str, float]] = [{} for _ in words]
        found = [("words", self.words.search(words, neighbours))]
        if self.meaning is not None and vectors is not None:
            found.append(("meaning", self.meaning.search(vectors, neighbours)))
        for kind, rows in found:
            for total, hits in zip(totals, rows):
                shares = [math.exp(SHARPNESS[kind] * (hit.score - hits[0].score)) for hit in hits]
                for hit, share in zip(hits, shares):
                    for name in self.tools[int(hit.id)]:
                        total[name] = total.get(name, 0.0) + share / sum(shares)
        return [[Hit(n, t[n]) for n in sorted(t, key=lambda name: (-t[name], name))] for t in totals]

    def save(self, folder: Path) -> None:
        folder.mkdir()
        write_json(folder / "tools.json", self.tools)
        self.words.save(folder / "words")
        if self.meaning is not None:
            self.meaning.save(folder / "meaning")

    @classmethod
    def load(cls, folder: Path) -> Self:
        memory = cls.__new__(cls)
        memory.tools, memory.words = read_json(folder / "tools.json"), load_index(folder / "words")
        memory.meaning = load_index(folder / "meaning") if (folder / "meaning").is_dir() else None
        return memory
