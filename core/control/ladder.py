"""Blocks turned into ladder blocks (Zhang et al. 2025, Ladder Residual): same weights, another wiring, then retraining.

A ladder sub-layer does not wait for the one before it, so under tensor parallelism its all-reduce runs beside this
computation. On one device it is an architecture like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.config.registry import BuildContext
from core.control.options import LadderOptions
from core.errors import ConfigError
from core.models.surgery import apply
from core.models.topology import ModelTopology


def ladder(model: Any, layers: int | Sequence[int]) -> Any:
    """Turn the last n blocks, or the blocks of a list, into ladder blocks, in place. Returns the model.

    Raises:
        ConfigError: more blocks than there are, or one that is edited already.
        UnsupportedError: a family whose norms do not stand before its sub-layers.
    """
    count = len(ModelTopology.of(model).stack)
    if isinstance(layers, int):
        if not 0 <= layers <= count:
            raise ConfigError(f"the last {layers} blocks of {count}", where="ladder.layers", hint=f"0 to {count}")
        layers = range(count - layers, count)
    return apply(model, "ladder", layers=list(layers))


def build(model: Any, options: LadderOptions, context: BuildContext) -> Any:
    """`ladder` as an edit of a recipe."""
    return ladder(model, options.layers)
