"""What every linear map of a model can do, whatever form its weight has.

Adapters, quantizers and mergers find their targets by `is_linear_like` and never by class, so that one form of a
linear map can be laid on another. `nn.Linear` and GPT-2's `Conv1D`, which stores the transpose, are forms like any
other: the functions here speak for them.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from core.errors import MergeError


@runtime_checkable
class LinearLike(Protocol):
    """y (…, out) = x (…, in) Wᵀ + b, with W (out_features, in_features) in any storage.

    `set_dense_weight` raises `MergeError` when the storage cannot hold the given weight. `storage_bytes` is what the
    weight occupies. `spec` names the form, as a recipe would.
    """

    in_features: int
    out_features: int
    spec: str

    def forward(self, x: Any) -> Any: ...
    def dense_weight(self, dtype: Any = None) -> Any: ...
    def set_dense_weight(self, weight: Any) -> None: ...
    def storage_bytes(self) -> int: ...


def is_linear_like(module: Any) -> bool:
    """True for `nn.Linear`, GPT-2's transposed `Conv1D`, and every form that gives a dense weight."""
    if hasattr(module, "dense_weight") and hasattr(module, "in_features"):
        return True
    import torch

    return isinstance(module, torch.nn.Linear) or _transposed(module)


def features(module: Any) -> tuple[int, int]:
    """(in, out) of a linear map."""
    if _transposed(module):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def dense_weight(module: Any, dtype: Any = None) -> Any:
    """W as (out_features, in_features) in `dtype`, whatever the storage."""
    if hasattr(module, "dense_weight"):
        return module.dense_weight(dtype)
    weight = module.weight.T if _transposed(module) else module.weight
    return weight if dtype is None else weight.to(dtype)


def set_dense_weight(module: Any, weight: Any) -> None:
    """Write W (out_features, in_features) into the module's own storage. Raises `MergeError` for another shape."""
    if hasattr(module, "set_dense_weight"):
        module.set_dense_weight(weight)
        return
    import torch

    inside, outside = features(module)
    if tuple(weight.shape) != (outside, inside):
        raise MergeError(f"a weight of shape {tuple(weight.shape)} for a linear map of shape {(outside, inside)}")
    with torch.no_grad():
        module.weight.copy_(weight.T if _transposed(module) else weight)


def storage_bytes(module: Any) -> int:
    """Bytes that the weight occupies; the bias is not counted."""
    if hasattr(module, "storage_bytes"):
        return module.storage_bytes()
    return module.weight.numel() * module.weight.element_size()


def _transposed(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
