"""A sub-layer left out, or replaced by one linear map (Bercovich et al. 2024, Puzzle).

The norm before it stays, so that the block's own forward pass is untouched: a sub-layer that adds zero is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.errors import ConfigError, UnsupportedError
from core.models.blocks.linears import put
from core.models.surgery import layer_index
from core.models.topology import ModelTopology

FORMS = ("noop", "linear")


class NoAttention(nn.Module):
    """Attention that adds nothing, keeps no keys and takes no cache slot."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class LinearAttention(nn.Linear):
    """Attention in which every token looks at itself alone: one (d, d) map, no keys, no cache slot."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return super().forward(hidden_states), None


class NoFeedForward(nn.Module):
    """A feed-forward part that adds nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def sublayer(model: Any, layer: int, which: str, form: str) -> None:
    """Replace `which` ("attn" or "mlp") of a block by `form` ("noop" or "linear", a map without values)."""
    if which not in ("attn", "mlp") or form not in FORMS:
        raise ConfigError(f"sub-layer '{which}' as '{form}'", where="sublayer", hint="attn or mlp; noop or linear")
    topology = ModelTopology.of(model)
    outer = topology.stack[layer_index(model, layer, "sublayer")]
    block = next((block for block in topology.blocks if block.module is outer), None)
    if block is None or block.mlp is None or block.residual == "post_ln" or block.q is None:
        raise UnsupportedError(
            f"sub-layers of a {topology.family} block cannot be replaced", hint="families like Llama can"
        )
    old = block.attn if which == "attn" else block.mlp
    weight = block.norms[0].weight
    if form == "noop":
        new: nn.Module = NoAttention() if which == "attn" else NoFeedForward()
    else:
        size = weight.shape[0]
        new = (LinearAttention if which == "attn" else nn.Linear)(
            size, size, bias=False, device=weight.device, dtype=weight.dtype
        )
    put(outer, old, new)
