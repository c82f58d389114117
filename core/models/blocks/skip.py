"""Feed-forward parts that a token leaves out once they hardly change it (Jaiswal et al. 2024, FFN-SkipLLM).

Attention always runs, so the key-value cache has no holes. The first and last blocks always run, and so do the first
generated tokens. In between, a block's feed-forward part runs and the cosine of the residual stream before and after
it is taken; from the block on where it reaches the threshold, the following blocks leave theirs out, at most
`max_skip` of them. Each row of a batch decides for itself. Prefill and training are never skipped.

The decision is one number a row on the device. The feed-forward part is left out in fact when every row of the batch
says so, which costs one synchronisation a block; otherwise it runs and the rows that skip keep their stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import ConfigError, UnsupportedError
from core.models.blocks.compound import Compound
from core.models.topology import ModelTopology

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass
class SkipState:
    """What the blocks of one model share during a token, and what was skipped since `reset_counts`."""

    threshold: float
    first: int
    last: int
    warmup: int
    max_skip: int
    generated: int = 0
    active: bool = False
    saturated: torch.Tensor | None = None
    used: torch.Tensor | None = None
    skipped: Any = 0
    offered: int = 0
    probe: list[list[torch.Tensor]] | None = field(default=None, repr=False)

    def start(self, x: torch.Tensor, cache: Any) -> None:
        """A new pass: it decodes when it brings one token to a cache that is not empty."""
        decoding = x.shape[1] == 1 and cache is not None and cache.get_seq_length() > 0
        self.generated = self.generated + 1 if decoding else 0
        self.active = decoding and self.generated > self.warmup
        self.saturated = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        self.used = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)

    @property
    def skip_ratio(self) -> float:
        """Share of all feed-forward parts (of every block and decoded row) that were left out."""
        return float(self.skipped) / self.offered if self.offered else 0.0

    def reset_counts(self) -> None:
        self.skipped, self.offered = 0, 0


class SkippingBlock(Compound):
    """A block whose feed-forward part may be left out."""

    def __init__(self, block: nn.Module, position: int, state: SkipState) -> None:
        super().__init__()
        self.block, self.position, self.state = block, position, state

    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """The block inside."""
        yield "skipping", self.block

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        state, block = self.state, self.block
        if self.position == 0:
            state.start(hidden_states, kwargs.get("past_key_values"))
        if state.probe is None and not state.active:
            return block(hidden_states, *args, **kwargs)
        attended = block.self_attn(block.input_layernorm(hidden_states), *args, **kwargs)[0]
        stream = hidden_states + attended
        if not state.active:
            out = stream + block.mlp(block.post_attention_layernorm(stream))
            state.probe[self.position].append(F.cosine_similarity(stream.float(), out.float(), dim=-1))
            return out
        state.offered += stream.shape[0]
        middle = state.first <= self.position < state.last
        skip = state.saturated & (state.used < state.max_skip) if middle else torch.zeros_like(state.saturated)
        if bool(skip.all()):
            out = stream
        else:
            out = stream + block.mlp(block.post_attention_layernorm(stream))
            cosine = F.cosine_similarity(stream.float(), out.float(), dim=-1)[:, 0]
            out = torch.where(skip[:, None, None], stream, out)
            if middle:
                state.saturated = state.saturated | (cosine >= state.threshold)
        state.used = state.used + skip
        state.skipped = state.skipped + skip.sum()
        return out


def skip_ffn(
    model: Any, threshold: float, cold_start: int, cold_end: int, warmup: int = 1, max_skip: int | None = None
) -> None:
    """Let blocks from `cold_start` up to before `cold_end` skip, after the first `warmup` decoded tokens."""
    topology = ModelTopology.of(model)
    count = len(topology.stack)
    if topology.family not in FAMILIES:
        raise UnsupportedError(
            f"feed-forward parts of a {topology.family} block cannot be skipped",
            where="skip_ffn",
            hint=f"known: {', '.join(FAMILIES)}",
        )
    if not 0 <= cold_start < cold_end <= count:
        raise ConfigError(
            f"blocks {cold_start} to {cold_end} of {count}", where="skip_ffn", hint="0 ≤ cold_start < cold_end ≤ blocks"
        )
    edited = next((i for i, block in enumerate(topology.stack) if hasattr(block, "branches")), None)
    if edited is not None:
        raise ConfigError(f"block {edited} is edited already", where="skip_ffn")
    state = SkipState(threshold, cold_start, cold_end, warmup, count if max_skip is None else max_skip)
    for position in range(count):
        topology.stack[position] = SkippingBlock(topology.stack[position], position, state)


def skip_state(model: Any) -> SkipState:
    """The counters of a model with `skip_ffn`. Raises `ConfigError` for another model."""
    for block in ModelTopology.of(model).stack:
        if isinstance(block, SkippingBlock):
            return block.state
    raise ConfigError("the model skips nothing", hint="apply the op skip_ffn first")
