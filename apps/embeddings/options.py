"""What a recipe may say about the embedding model and about serving it; no library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config.schema import key

Pooling = Literal["auto", "latent", "mean", "last", "cls"]


@dataclass
class EmbeddingOptions:
    """Keys of the edit `{kind: embedding, …}` that turns a language model into an embedding model."""

    pooling: Pooling = key("auto", "how token states become one vector; auto keeps the model's own, else mean")
    latents: int = key(512, "vectors in the dictionary of latent attention", least=1)
    heads: int = key(8, "heads of latent attention", least=1)
    bidirectional: bool = key(True, "every token sees the whole text; a causal decoder is opened up")
    normalize: bool = key(True, "scale embeddings to unit length")


@dataclass(frozen=True)
class EmbeddingConfig:
    """Settings of a served embedding model.

    Args:
        template: how an instruction becomes a prompt. task: instruction of queries that do not give their own.
        max_length: tokens of a text that are read; null takes what was saved with the model, else its own limit.
        dimensions: keep this many leading dimensions (Matryoshka). batch_tokens: padded tokens of one forward pass.
    """

    template: str = "lines"
    task: str = ""
    max_length: int | None = None
    dimensions: int | None = None
    batch_tokens: int = 16384
