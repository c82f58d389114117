"""What every linear map of a model can do, whatever form its weight has.

Adapters, quantizers and mergers find their targets by `is_linear_like` and never by class, so that one form of a
linear map can be laid on another.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class LinearLike(Protocol):
    """y (…, out) = x (…, in) Wᵀ + b, with W of shape (out_features, in_features) in any storage."""

    in_features: int
    out_features: int

    def forward(self, x: Any) -> Any: ...


def is_linear_like(module: Any) -> bool:
    """True for `nn.Linear`, GPT-2's transposed `Conv1D`, and every form that gives a dense weight."""
    if hasattr(module, "dense_weight") and hasattr(module, "in_features"):
        return True
    import torch

    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def dense_weight(module: Any, dtype: Any = None):
    """W as (out_features, in_features) in `dtype`, whatever the storage."""
    if hasattr(module, "dense_weight"):
        return module.dense_weight(dtype)
    weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
    return weight if dtype is None else weight.to(dtype)
