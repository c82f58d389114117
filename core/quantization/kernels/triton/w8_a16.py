"""Products with affine weights of 5 to 8 bits, a byte each, on NVIDIA GPUs; and of up to 4 where `w4` cannot.

Up to 64 rows are multiplied straight from the bytes, with the scale taken after the product of each group; for more,
one pass decodes the matrix for a dense product.
"""

from __future__ import annotations

from typing import Any

import torch

from core.quantization import grids, scales
from core.quantization.kernels.triton import w4
from core.quantization.packing import pack, unpack

differentiable = True
STEPS = (128, 64, 32, 16)
OUTPUTS = 32


def refuses(layer: Any) -> str | None:
    """Why this layer cannot run here, or None."""
    spec = layer.quant
    if layer.planes.device.type != "cuda":
        return f"it is for CUDA, the layer is on {layer.planes.device.type}"
    if spec.codebook or spec.grid == "learned":
        return f"it is for affine grids, this is {spec.grid}"
    if spec.act != "none":
        return "the spec rounds activations itself"
    if layer.extra.get("nnz"):
        return "values lie beside the matrix"
    if step_of(layer.in_features, spec.groups(layer.in_features)) is None:
        return f"{layer.in_features} inputs in groups of {spec.group} do not divide by 16"
    from core.quantization.kernels.triton.decode import available

    return None if available() else "Triton is not here"


def step_of(inputs: int, groups: int) -> int | None:
    """Inputs of one product: the most that divides a group."""
    return next((step for step in STEPS if inputs // groups % step == 0), None)


def arrange(layer: Any) -> tuple[torch.Tensor, ...]:
    """(codes uint8 (N, K), scale fp32 (N, G), zero fp32 (N, G))."""
    tensors = layer.form.named([layer.planes, *(getattr(layer, name) for name in layer.form.names[1:])])
    scale = scales.load(tensors, layer.quant)
    zero = tensors["zero"].float() if "zero" in tensors else torch.full_like(scale, grids.fixed_zero(layer.quant))
    both = (part.expand(layer.out_features, -1).contiguous() for part in (scale, zero))
    return (unpack(layer.planes, layer.in_features).contiguous(), *both)


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    return pack(layer._layout[0], layer.quant.bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix: (…, N) in x's dtype; fp32 is rounded to bf16 for the product."""
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return w8_matmul(x, *layer._layout)
    return launch(x, *layer._layout)


def launch(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """`w8_matmul` without the dispatcher between."""
    from core.quantization.kernels.triton.w8_a16_kernel import w8_tile

    (outputs, inputs), groups = codes.shape, scale.shape[1]
    rows = x.reshape(-1, inputs)
    rows = rows.contiguous() if rows.dtype in (torch.bfloat16, torch.float16) else rows.to(torch.bfloat16).contiguous()
    count, step = rows.shape[0], step_of(inputs, groups)
    if count > w4.MOST_ROWS:
        y = rows @ decode(codes, scale, zero, rows.dtype).t()
    else:
        steps, programs = inputs // step, -(-outputs // OUTPUTS)
        share = -(-steps // w4.parts_of(programs, steps, rows.device))
        parts = -(-steps // share)
        out = torch.empty(
            parts, count, outputs, dtype=torch.float32 if parts > 1 else rows.dtype, device=rows.device
        )  # fmt: skip
        if count:
            w8_tile[(programs, parts)](
                rows, codes, scale, zero, out, count, outputs, inputs, groups, share, BN=OUTPUTS,
                BM=next(size for size in (16, 32, 64) if count <= size), BK=step, num_warps=4,
            )  # fmt: skip
        y = out[0] if parts == 1 else out.sum(0)
    return y.to(x.dtype).view(*x.shape[:-1], outputs)


def decode(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The dense matrix (N, K)."""
    from core.quantization.kernels.triton.w8_a16_kernel import w8_decode

    (outputs, inputs), groups = codes.shape, scale.shape[1]
    out, step = torch.empty(codes.shape, dtype=dtype, device=codes.device), step_of(inputs, groups)
    w8_decode[(outputs, inputs // step)](codes, scale, zero, out, inputs, groups, BK=step)
    return out


@torch.library.custom_op("graft::w8_matmul", mutates_args=(), device_types="cuda")
def w8_matmul(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix of bytes, scales and zero points: (…, N)."""
    return launch(x, codes, scale, zero)


@w8_matmul.register_fake
def _(x, codes, scale, zero):
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _keep_layout(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _input_gradient(ctx, grad):
    return grad @ decode(*ctx.saved_tensors, grad.dtype), None, None, None


w8_matmul.register_autograd(_input_gradient, setup_context=_keep_layout)
