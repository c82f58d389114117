"""Products with weights of 1 to 4 bits by table lookup, on CPUs (Wei et al. 2024, T-MAC).

Sums of four activations under every sign pattern are tabulated once for an input, in int8 with one step for each group;
a weight's bits are then indices, and the time grows with the number of bits. The error is that of rounding the tables,
below one per cent on Gaussian inputs. Above a few rows decoding and a dense product are faster, and take over.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from core.quantization import grids, scales
from core.quantization.kernels.cpu import native
from core.quantization.packing import pack, unpack

most_rows = 8
TILE = 64
STEPS = (128, 64, 32, 16, 8)


def refuses(layer: Any) -> str | None:
    """Why this layer cannot run here, or None."""
    spec = layer.quant
    if layer.planes.device.type != "cpu":
        return f"it is for CPUs, the layer is on {layer.planes.device.type}"
    if spec.codebook or spec.grid == "learned" or spec.bits > 4:
        return f"it is for affine grids of 1 to 4 bits, this is {spec.grid} of {spec.bits}"
    if spec.act != "none":
        return "the spec rounds activations itself"
    if layer.extra.get("nnz"):
        return "values lie beside the matrix"
    if step_of(layer) is None:
        return f"{layer.in_features} inputs do not divide by 8"
    if native.library() is None:
        return "there is no C++ compiler"
    return None


def step_of(layer: Any) -> int | None:
    """Inputs that share a table step: the most that divide what shares a scale; None where none of `STEPS` does."""
    shared = layer.quant.group if layer.quant.group > 0 else layer.in_features
    return next((step for step in STEPS if shared % step == 0), None)


def arrange(layer: Any) -> tuple[torch.Tensor, ...]:
    """(indices, scales, shifts) as `kernels.cpp` reads them: in its wide form where processor and step allow it."""
    return laid_out(layer, wide=wide_here() and step_of(layer) % 32 == 0)


def wide_here() -> bool:
    """Whether the compiled library has the wide form."""
    library = native.library()
    return library is not None and bool(library.graft_lut_wide())


def laid_out(layer: Any, wide: bool) -> tuple[torch.Tensor, ...]:
    """`arrange` in a given form.

    Returns:
        indices uint8 (tiles, steps, …); scales (tiles, spans, 64), fp16 where they are stored so and else fp32; shifts
        int8 of the scales' shape, empty where the grid stores no zero point.
    """
    spec, bits, step = layer.quant, layer.quant.bits, step_of(layer)
    assert step is not None
    codes = torch.nn.functional.pad(unpack(layer.planes, layer.in_features), (0, 0, 0, -layer.out_features % TILE))
    planes = (codes.unflatten(0, (-1, TILE))[:, :, None] >> torch.arange(bits, dtype=torch.uint8)[:, None]) & 1
    quads = (planes.unflatten(3, (-1, 4)) << torch.arange(4, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    tensors = layer.form.named([layer.planes, *(getattr(layer, name) for name in layer.form.names[1:])])
    scale = scales.load(tensors, spec)
    scale = _tiled(scale.half() if spec.scale == "fp16" else scale, layer.out_features)
    shifts = scale.new_empty(0, dtype=torch.int8)
    if "zero" in tensors:
        shifts = _tiled((2**bits - 1 - 2 * tensors["zero"].int()).to(torch.int8), layer.out_features)
    return (_wide(quads, step) if wide else _narrow(quads, step)), scale, shifts


def _narrow(quads: torch.Tensor, step: int) -> torch.Tensor:
    """Indices of quads (tiles, 64, bits, K / 4) → (tiles, steps, bytes): pairs of planes, the last of an odd number."""
    bits = quads.shape[2]
    index = (quads[..., ::2] | (quads[..., 1::2] << 4)).unflatten(3, (-1, step // 8))
    pairs = index[:, :, : bits // 2 * 2].unflatten(2, (bits // 2, 2)).unflatten(1, (4, 16))
    parts = [pairs.permute(0, 5, 3, 1, 6, 2, 4).flatten(2)]
    if bits % 2:
        parts.append(index[:, :, -1].unflatten(1, (2, 2, 16)).permute(0, 4, 1, 5, 3, 2).flatten(2))
    return torch.cat(parts, 2)


def _from_narrow(indices: torch.Tensor, bits: int, step: int) -> torch.Tensor:
    pairs, last = indices.split([bits // 2 * 16 * step, bits % 2 * 8 * step], 2)
    pairs = pairs.unflatten(2, (bits // 2, 4, step // 8, 16, 2))
    parts = [pairs.permute(0, 3, 5, 2, 6, 1, 4).flatten(3, 4).flatten(1, 2)]
    if bits % 2:
        last = last.unflatten(2, (2, step // 8, 16, 2)).permute(0, 2, 5, 4, 1, 3)
        parts.append(last.flatten(1, 3)[:, :, None])
    index = torch.cat(parts, 2)
    return torch.stack([index & 15, index >> 4], -1).flatten(3)


def _wide(quads: torch.Tensor, step: int) -> torch.Tensor:
    """The same → (tiles, steps, bits, step / 32, 64, 4)."""
    quads = quads.unflatten(3, (-1, step // 32, 2, 4))
    return (quads[..., 0, :] | (quads[..., 1, :] << 4)).permute(0, 3, 2, 4, 1, 5).contiguous()


def _from_wide(indices: torch.Tensor) -> torch.Tensor:
    indices = indices.permute(0, 4, 2, 1, 3, 5)
    return torch.stack([indices & 15, indices >> 4], -2).flatten(3)


def _tiled(values: torch.Tensor, rows: int) -> torch.Tensor:
    """(rows or 1, spans) → (tiles, spans, 64)."""
    full = torch.nn.functional.pad(values.expand(rows, -1), (0, 0, 0, -rows % TILE))
    return full.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    bits, indices = layer.quant.bits, layer._layout[0]
    quads = _from_wide(indices) if indices.dim() == 6 else _from_narrow(indices, bits, step_of(layer))
    planes = ((quads[..., None] >> torch.arange(4, dtype=torch.uint8)) & 1).flatten(3)
    codes = (planes << torch.arange(bits, dtype=torch.uint8)[:, None]).sum(2, dtype=torch.uint8).flatten(0, 1)
    return pack(codes[: layer.out_features], bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix: (…, N) in x's dtype."""
    shift = 2**layer.quant.bits - 1 - 2 * grids.fixed_zero(layer.quant)
    return torch.ops.graft.lut_matmul(x, *layer._layout, layer.out_features, step_of(layer), layer.quant.bits, shift)


# declared this way because `custom_op` adds tens of microseconds to every call
torch.library.define(
    "graft::lut_matmul",
    "(Tensor x, Tensor indices, Tensor scale, Tensor shifts, int outputs, int step, int bits, float shift) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("graft::lut_matmul", "cpu")
def _lut_matmul(
    x: torch.Tensor,
    indices: torch.Tensor,
    scale: torch.Tensor,
    shifts: torch.Tensor,
    outputs: int,
    step: int,
    bits: int,
    shift: float,
) -> torch.Tensor:
    """x (…, K) times a matrix arranged for lookup: (…, N). `shift` stands for `shifts` where there are none."""
    library = native.library()
    assert library is not None
    inputs = x.shape[-1]
    rows = x.reshape(-1, inputs).float().contiguous()
    y = torch.empty(rows.shape[0], outputs, dtype=torch.float32)
    span = inputs // step // scale.shape[1]
    halves, wide = int(scale.dtype == torch.float16), int(indices.dim() == 6)
    sizes = (rows.shape[0], outputs, inputs, step, span, bits, halves, wide, torch.get_num_threads())
    library.graft_lut(
        native.pointer(indices), native.pointer(scale), native.pointer(shifts) if shifts.numel() else None,
        native.pointer(rows), native.pointer(y), *map(ctypes.c_int64, sizes), ctypes.c_double(shift),
    )  # fmt: skip
    return y.to(x.dtype).reshape(*x.shape[:-1], outputs)


@torch.library.register_fake("graft::lut_matmul")
def _(x, indices, scale, shifts, outputs, step, bits, shift):
    return x.new_empty(*x.shape[:-1], outputs)
