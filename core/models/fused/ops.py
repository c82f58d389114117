"""Norm with residual, rotary phases and gated product as differentiable functions over kernels or their twins."""

from __future__ import annotations

from typing import Any

import torch

from core.models.fused.backend import runs_triton


def kernels_for(tensor: torch.Tensor) -> Any:
    """The module whose arithmetic fits the tensor: Triton's on a GPU, PyTorch's elsewhere."""
    if runs_triton(tensor):
        from core.models.fused import triton_layers

        return triton_layers
    from core.models.fused import plain

    return plain


def add_rms_norm(
    x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm(x + added), x + added), each (…, D); without `added` the second is x.

    The sum goes on as the residual stream, so that its gradient and the norm's are added in one kernel. Under autocast
    the normed states come in its dtype: what follows is a matrix product.
    """
    kind = x.device.type
    dtype = (
        torch.get_autocast_dtype(kind)
        if torch.is_autocast_enabled(kind)
        else torch.promote_types(x.dtype, weight.dtype)
    )
    return _AddRMSNorm.apply(x, added, weight, eps, dtype)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, T, H, d) turned by the phases (B or 1, T, d), whose halves are equal."""
    return _Rotary.apply(x, cos, sin)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, each (…, I)."""
    return _Gated.apply(gate, up)


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, added, weight, eps, dtype):  # type: ignore[override]
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        other = None if added is None else added.reshape(-1, x.shape[-1]).contiguous()
        out, summed, inverse = kernels_for(x).norm_forward(flat, other, weight, eps, dtype)
        ctx.save_for_backward(summed, weight, inverse)
        ctx.dtypes = (x.dtype, None if added is None else added.dtype)
        stream = x.view_as(x) if added is None else summed.view(x.shape)
        return out.view(x.shape), stream

    @staticmethod
    def backward(ctx: Any, grad, passed):  # type: ignore[override]
        summed, weight, inverse = ctx.saved_tensors
        flat = grad.reshape(summed.shape).contiguous()
        passed = None if passed is None else passed.reshape(summed.shape).contiguous()
        dx, gain = kernels_for(grad).norm_backward(flat, passed, summed, weight, inverse, ctx.needs_input_grad[2])
        dx = dx.view(grad.shape)
        own, other = ctx.dtypes
        return (
            dx.to(own),
            None if other is None else dx.to(other),
            None if gain is None else gain.to(weight.dtype),
            None,
            None,
        )


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, cos, sin):  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return kernels_for(x).rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        return kernels_for(grad).rotate(grad, cos, sin, -1.0), None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate, up):  # type: ignore[override]
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return kernels_for(up).gated(gate, up)

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[override]
        gate, up = ctx.saved_tensors
        return kernels_for(grad).gated_backward(grad.contiguous(), gate, up, False)[:2]
