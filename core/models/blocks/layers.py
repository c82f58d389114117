"""Blocks taken out, and blocks put in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from core.errors import ConfigError
from core.models.surgery import layer_index
from core.models.topology import ModelTopology


def drop_layers(model: Any, layers: Sequence[int]) -> None:
    """Remove the blocks at these positions; at least one must stay."""
    stack = ModelTopology.of(model).stack
    gone = {layer_index(model, layer, "drop_layers") for layer in layers}
    if len(gone) == len(stack):
        raise ConfigError("every block would be dropped", where="drop_layers", hint=f"keep one of {len(stack)}")
    for layer in sorted(gone, reverse=True):
        del stack[layer]


def insert_block(model: Any, after: int) -> None:
    """Put a copy of block `after` behind it."""
    stack = ModelTopology.of(model).stack
    layer_index(model, after, "insert_block")
    stack.insert(after + 1, copy.deepcopy(stack[after]))


def silence(block: Any) -> None:
    """Zero what a block (a `BlockRef`) adds to the residual stream: it becomes the identity, and can still learn.

    The outer matrices of attention and feed-forward part, with their biases, are set to zero (Wu et al. 2024, LLaMA
    Pro). Only blocks whose norms stand before the sub-layers become an identity.
    """
    import torch

    with torch.no_grad():
        for part in (block.o, block.down):
            part.weight.zero_()
            if getattr(part, "bias", None) is not None:
                part.bias.zero_()
