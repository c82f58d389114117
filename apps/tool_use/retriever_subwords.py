"""An encoder without layers or vocabulary: a text is the sum of vectors of its words and of their letter groups.

As in fastText (Bojanowski et al. 2017) every word brings the groups of `letters` letters within it, and each word or
group takes the row of a table that its checksum names. Words that training never saw share groups with words that it
saw, which is what helps with tools that are new. Identifiers are cut at capitals and underscores, and each word of a
text counts once. It trains in seconds on a CPU, from nothing. The class is a module of
sentence-transformers, which opens it by itself when told to trust the code of this package.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self

import torch
from sentence_transformers.base.modules import InputModule
from torch import nn

from core.retrieval.words import code


class SubwordEmbedding(InputModule):
    """Texts → embeddings (n, width), the sum over words and letter groups.

    Args:
        width: of the embeddings. rows: of the table. letters: of a group, borders of the word counted as letters.
    """

    config_keys: ClassVar[list[str]] = ["width", "rows", "letters"]  # type: ignore[misc]

    def __init__(self, width: int = 256, rows: int = 32768, letters: int = 4) -> None:
        super().__init__()
        self.width, self.rows, self.letters = width, rows, letters
        self.table = nn.EmbeddingBag(rows, width, mode="sum")

    def parts(self, text: str) -> Iterator[str]:
        """The distinct words of a text, each followed by its letter groups."""
        for word in dict.fromkeys(code(text)):
            yield word
            framed = f"<{word}>"
            if len(framed) > self.letters + 1:
                yield from (framed[i : i + self.letters] for i in range(len(framed) - self.letters + 1))

    def ids(self, text: str) -> list[int]:
        """Rows of the table; a text without words takes row 0."""
        return [zlib.crc32(part.encode()) % self.rows for part in self.parts(text)] or [0]

    @torch.no_grad()
    def weigh(self, texts: Iterable[str]) -> Self:
        """Begin with rows as long as what they stand for is rare in `texts`: ln(N / n)."""
        held, count = torch.zeros(self.rows), 0
        for text in texts:
            held[list(set(self.ids(text)))] += 1
            count += 1
        rarity = torch.log(max(1, count) / held.clamp(min=0.5)).clamp(min=0.01)
        nn.init.normal_(self.table.weight, std=0.1)
        self.table.weight *= (rarity / rarity.mean())[:, None]
        return self

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        rows = [self.ids(text) for text in (self._prepend_prompt(inputs, prompt) if prompt else inputs)]
        starts = torch.tensor([0, *map(len, rows[:-1])]).cumsum(0)
        return {"input_ids": torch.tensor([i for row in rows for i in row]), "offsets": starts}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features["sentence_embedding"] = self.table(features["input_ids"], features["offsets"])
        return features

    @property
    def max_seq_length(self) -> float:
        return float("inf")

    def get_embedding_dimension(self) -> int:
        return self.width

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> SubwordEmbedding:
        known = {k: v for k, v in kwargs.items() if k in ("token", "cache_folder", "revision", "local_files_only")}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **known)
        made = cls(**{name: config[name] for name in cls.config_keys})
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=made, **known)
