"""Products of int8 activations and int8 weights on NVIDIA GPUs: one scale for a token, one for an output.

Serves every spec that rounds activations for each token and whose weight is an int8 matrix times a scale for each row:
LLM.int8() with its outlier columns, QoQ's two-level weights, BitLinear's ternary ones. One kernel rounds the tokens,
one multiplies in int32 and scales; above 64 rows the product is the vendor's. Nothing waits for the device: of the
columns with an outlier (Dettmers et al. 2022) the 64 largest are multiplied in 16 bits, further ones stay in int8.
"""

from __future__ import annotations

from typing import Any

import torch

from core.quantization import grids
from core.quantization.activations import OUTLIER
from core.quantization.kernels.reference import integer_weight
from core.quantization.packing import pack

FEW_ROWS, COLUMNS, OUTPUTS, STEP = 64, 64, 64, 128
differentiable = True


def refuses(layer: Any) -> str | None:
    """Why this layer cannot run here, or None."""
    spec = layer.quant
    if layer.planes.device.type != "cuda":
        return f"it is for CUDA, the layer is on {layer.planes.device.type}"
    if spec.act not in ("int8", "split"):
        return f"it is for activations in int8 for each token, this has {spec.act}"
    if layer.extra.get("nnz"):
        return "values lie beside the matrix"
    if spec.scale != "int8" and spec.groups(layer.in_features) > 1:
        return "groups of a row have scales of their own"
    if spec.has_zero and spec.bits == 8:
        return "codes less their zero point need nine bits"
    if spec.grid == "bipolar":
        return "its codes have no zero"
    if layer.in_features % 16 or layer.out_features % 8:
        return f"{layer.out_features} × {layer.in_features} is not in tiles of 8 × 16"
    from core.quantization.kernels.triton.decode import available

    return None if available() else "Triton is not here"


def arrange(layer: Any) -> tuple[torch.Tensor, ...]:
    """(weight int8 (N, K), scale fp32 (N,))."""
    tensors = layer.form.named([layer.planes, *(getattr(layer, name) for name in layer.form.names[1:])])
    weight, scale = integer_weight(tensors, layer.form)
    return weight.to(torch.int8).contiguous(), scale.expand(layer.out_features, 1)[:, 0].float().contiguous()


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    codes = layer._layout[0].to(torch.int32)
    if layer.quant.scale == "int8":
        codes = codes // grids.spread(layer.scale.to(torch.int32), layer.in_features)
    zero = grids.spread(layer.zero.int(), layer.in_features) if layer.quant.has_zero else grids.fixed_zero(layer.quant)
    return pack((codes + zero).to(torch.uint8), layer.quant.bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) rounded to int8, times the matrix: (…, N) in x's dtype."""
    split = layer.quant.act == "split"
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return w8_a8(x, *layer._layout, split)
    return launch(x, *layer._layout, split)


def launch(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, split: bool) -> torch.Tensor:
    """`w8_a8` without the dispatcher between."""
    from core.quantization.kernels.triton.w8_a8_kernel import round_tokens, scale_sums, w8_a8_tile

    outputs, inputs = weight.shape
    rows = x.reshape(-1, inputs).contiguous()
    count = rows.shape[0]
    y = torch.empty(count, outputs, dtype=x.dtype, device=x.device)
    if not count:
        return y.view(*x.shape[:-1], outputs)
    kept, beside = _outliers(rows, weight, scale) if split else (rows, None)
    codes = torch.empty(count, inputs, dtype=torch.int8, device=x.device)
    step = torch.empty(count, dtype=torch.float32, device=x.device)
    round_tokens[(count,)](
        rows, kept, codes, step, inputs, OUTLIER, SPLIT=split, BLOCK=_power(inputs), num_warps=8,
        enable_fp_fusion=False,
    )  # fmt: skip
    added = y if beside is None else beside
    if count <= FEW_ROWS:
        w8_a8_tile[(-(-outputs // OUTPUTS),)](
            codes, weight, step, scale, added, y, count, outputs, inputs, SPLIT=split, BN=OUTPUTS,
            BM=next(size for size in (16, 32, 64) if count <= size), BK=STEP, num_warps=4, num_stages=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    else:
        sums = torch._int_mm(codes, weight.t())
        scale_sums[(count, -(-outputs // 1024))](
            sums, step, scale, added, y, outputs, SPLIT=split, BLOCK=1024, enable_fp_fusion=False
        )
    return y.view(*x.shape[:-1], outputs)


def _outliers(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(whether a column is taken out (K,) uint8, what those columns give (M, N))."""
    peak, columns = rows.abs().amax(0).topk(min(COLUMNS, rows.shape[1]))
    taken = peak >= OUTLIER
    mask = torch.zeros(rows.shape[1], dtype=torch.uint8, device=rows.device).scatter_(0, columns, taken.to(torch.uint8))
    dense = (weight[:, columns].float() * scale[:, None]).to(rows.dtype)
    return mask, (rows[:, columns] * taken.to(rows.dtype)) @ dense.t()


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


@torch.library.custom_op("graft::w8_a8", mutates_args=(), device_types="cuda")
def w8_a8(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, split: bool) -> torch.Tensor:
    """x (…, K) rounded to int8 for each token, times weight (N, K) int8 and scale (N,): (…, N) in x's dtype."""
    return launch(x, weight, scale, split)


@w8_a8.register_fake
def _(x, weight, scale, split):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep_weight(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:3])


def _input_gradient(ctx, grad):
    # rounding is straight-through: the gradient is that of the decoded matrix
    weight, scale = ctx.saved_tensors
    return grad @ (weight.float() * scale[:, None]).to(grad.dtype), None, None, None


w8_a8.register_autograd(_input_gradient, setup_context=_keep_weight)
