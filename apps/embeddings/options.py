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
    """Settings of a served embedding model."""

    template: str = key("lines", "how an instruction becomes a prompt")
    task: str = key("", "instruction of queries that do not give their own")
    query_prompt: str = key("", "words before a query without instruction; a model's own prompt")
    document_prompt: str = key("", "words before a document; a model's own prompt")
    max_length: int | None = key(
        None, "tokens of a text that are read; null: as saved, else the model's limit", least=2
    )
    dimensions: int | None = key(None, "keep this many leading dimensions (Matryoshka)", least=1)
    batch_tokens: int = key(16384, "padded tokens of one forward pass", least=1)
