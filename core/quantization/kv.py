"""A key-value cache in 8 or 4 bits, as transformers knows caches.

Every token is rounded once, when it arrives, with one scale and zero for each token and head (Lin et al. 2024, QServe),
or for each group of the head's channels; tokens already there are never rounded again. Codes of four bits lie two in a
byte. Queries, and the products, stay in the model's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from core.errors import ConfigError


def graft_cache(model: Any, kind: str = "kv4", group: int | None = None) -> Cache:
    """An empty cache for `model`: `generate(past_key_values=graft_cache(model, "kv4"))`.

    Args:
        kind: "kv8" or "kv4". group: channels that share a scale; default the whole head.

    Raises:
        ConfigError: an unknown kind, a group that does not divide the head, or layers that are no full attention.
    """
    if kind not in ("kv4", "kv8"):
        raise ConfigError(f"unknown cache '{kind}'", where="inference.kv", hint="kv8 or kv4")
    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    group = size if group is None else group
    if group < 2 or size % group or group % 2:
        working = [g for g in range(2, size + 1, 2) if size % g == 0]
        raise ConfigError(f"a head of {size} does not divide into groups of {group}", hint=f"groups: {working}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(f"layers of {sorted(kinds)}", hint="the low-bit cache is for full attention")
    return Cache(layers=[LowBitLayer(int(kind[2:]), group) for _ in range(config.num_hidden_layers)])


class LowBitLayer(DynamicLayer):
    """Keys and values of one layer as codes (B, heads, T, d), with fp16 scale and zero (B, heads, T, d / group)."""

    def __init__(self, bits: int, group: int) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        self.held: list[tuple[torch.Tensor, ...]] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.held = [self._rounded(states[..., :0, :]) for states in (key_states, value_states)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Round and append; returns all keys and values as they are decoded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for index, states in enumerate((key_states, value_states)):
            new = self._rounded(states)
            self.held[index] = tuple(torch.cat(pair, -2) for pair in zip(self.held[index], new))
        return self._decoded(0), self._decoded(1)

    def get_seq_length(self) -> int:
        return self.held[0][0].shape[-2] if self.is_initialized and self.held else 0

    def reset(self) -> None:
        self.held, self.is_initialized = [], False

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens: a negative number says how many, a positive one how many stay."""
        if not self.is_initialized or not tokens_to_remove:
            return
        stay = tokens_to_remove if tokens_to_remove > 0 else max(0, self.get_seq_length() + tokens_to_remove)
        self.held = [tuple(t[..., :stay, :] for t in part) for part in self.held]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.held = [tuple(t.repeat_interleave(repeats, 0) for t in part) for part in self.held]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.held = [tuple(t[indices] for t in part) for part in self.held]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.get_seq_length():
            self.batch_select_indices(beam_idx.to(self.device))

    def storage_bytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return sum(t.numel() * t.element_size() for part in self.held for t in part)

    def _rounded(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = states.float().unflatten(-1, (-1, self.group))
        low, high = parts.amin(-1), parts.amax(-1)
        top = 2**self.bits - 1
        scale = ((high - low) / top).clamp_min(2.0**-14).to(torch.float16)
        low = low.to(torch.float16)
        codes = ((parts - low[..., None].float()) / scale[..., None].float()).round().clamp(0, top)
        codes = codes.to(torch.uint8).flatten(-2)
        if self.bits == 4:
            codes = codes[..., ::2] | (codes[..., 1::2] << 4)
        return codes, scale, low

    def _decoded(self, index: int) -> torch.Tensor:
        codes, scale, low = self.held[index]
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
        parts = codes.unflatten(-1, (-1, self.group)).float() * scale[..., None].float() + low[..., None].float()
        return parts.flatten(-2).to(self.dtype)
