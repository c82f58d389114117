"""What a recipe may say about models of this app; no library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config.schema import key


@dataclass
class BiEncoderOptions:
    """Keys of the edit `{kind: bi_encoder, …}`."""

    encoder: Literal["base", "subwords"] = key("base", "the recipe's model, or a table of word vectors from nothing")
    width: int = key(256, "dimensions of the table", least=1)
    rows: int = key(32768, "rows of the table", least=1)
    pooling: Literal["mean", "last", "cls"] = key("mean", "how token states become one vector")


@dataclass
class InterpolationOptions:
    """Keys of the edit `{kind: position_interpolation, …}`."""

    factor: float = key(4.0, "how many times as many positions", above=1)


@dataclass(frozen=True)
class RetrieverConfig:
    """Settings of a served retriever.

    Args:
        search: bm25, dense, or hybrid; auto takes hybrid where there is a model, else bm25.
        fusion: sum adds scores scaled to [0, 1], rrf reciprocal ranks. weight: of the dense ranking; BM25's is 1.
        depth: tools of each ranking that are fused. k: tools given for a question.
        neighbours: remembered questions that vote. remembered: weight of their votes.
        k1, b: of BM25. batch: texts encoded at one time.
    """

    search: Literal["auto", "bm25", "dense", "hybrid"] = "auto"
    fusion: Literal["sum", "rrf"] = "sum"
    weight: float = 1.0
    depth: int = 100
    k: int = 5
    neighbours: int = 20
    remembered: float = 4.0
    k1: float = 1.2
    b: float = 0.75
    batch: int = 64
