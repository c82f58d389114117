"""The options of each adapter kind, as a recipe writes them under `with:` of an adapter.

They stand here and not beside the adapters so that a recipe is checked without torch. What an option means for the
mathematics is told by the adapter that it configures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config.schema import key


@dataclass
class BottleneckOptions:
    """A series or parallel bottleneck at linear maps (Hu et al. 2023)."""

    r: int = key(256, "width of the bottleneck", least=1)
    mode: Literal["auto", "series_in", "series_out", "parallel"] = key("auto", "before, behind or beside the map")
    act: Literal["tanh", "relu", "gelu", "silu"] | None = key("tanh", "activation; null can be merged")
    dropout: float = key(0.0, "dropout on the bottleneck's input", least=0, most=0.95)
    scaling: float | Literal["learned"] = key(1.0, "factor of the branch")
    init: Literal["zero_up", "bert"] = key("zero_up", "zero_up starts at the identity, bert does not")
    fp32_branch: bool = key(True, "compute the branch in fp32 over a half-precision base")


@dataclass
class PresetOptions:
    """A published placement of the bottleneck."""

    r: int = key(256, "width of the bottleneck", least=1)


@dataclass
class PrefixOptions:
    """Learnt keys and values before every sequence (Li and Liang 2021)."""

    tokens: int = key(10, "virtual tokens", least=1)


@dataclass
class SeqBottleneckOptions:
    """A bottleneck behind every block (Pfeiffer et al. 2020), and a coupling at the embeddings (MAD-X)."""

    reduction_factor: int = key(16, "width of the stream over width of the bottleneck", least=1)
    act: Literal["relu", "gelu", "silu", "tanh"] = key("relu", "activation")
    invertible: Literal["nice"] | None = key(None, "nice adds the coupling at the embeddings")
    inv_reduction: int = key(2, "half the stream over the coupling's inner width", least=1)
    ln_before: bool = key(True, "feed the bottleneck through the block's own norm, where that comes last")
