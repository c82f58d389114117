"""torch's count of floating-point operations, also where several query heads share a key and a value.

Fused attention with shared heads is refused by the counter of torch 2.11 ("shapes are incompatible") and counted as if
every query head had its own key by later ones. Here it is counted so with all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_FORWARD = (
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_cudnn_attention", "_flash_attention_forward",
)  # fmt: skip
_BACKWARD = (
    "_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_cudnn_attention_backward", "_flash_attention_backward",
)  # fmt: skip


def flop_counter() -> Any:
    """A FlopCounterMode that prints nothing."""
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    places = {name: 0 for name in _FORWARD} | {name: 1 for name in _BACKWARD}
    operators = {getattr(torch.ops.aten, name): place for name, place in places.items()}
    shared = {op: _unshared(flop_registry[op], place) for op, place in operators.items() if op in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=shared)


def _unshared(count: Callable[..., int], place: int) -> Callable[..., int]:
    """`count` of an attention whose query is argument `place`, keys and values given as many heads as queries have.

    Heads are the second axis, of dense batches (batch, heads, length, width) and of packed rows (tokens, heads, width).
    """

    def counted(*args: Any, **given: Any) -> int:
        query, key, value = args[place : place + 3]
        key, value = (
            torch.empty((part.shape[0], query.shape[1], *part.shape[2:]), device="meta") for part in (key, value)
        )
        return count(*args[: place + 1], key, value, *args[place + 3 :], **given)

    counted._get_raw = True  # type: ignore[attr-defined]  # tensors come as they are, not as shapes
    return counted
