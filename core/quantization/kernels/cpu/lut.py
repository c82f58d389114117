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
GROUPS = (128, 64, 32, 16, 8)


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
        return f"{layer.in_features} inputs in groups of {spec.group} do not divide by 8"
    if native.library() is None:
        return "there is no C++ compiler"
    return None


def step_of(layer: Any) -> int | None:
    """Inputs that share a table step: the scale's group, or the largest that divides where a row shares its scale."""
    if layer.quant.group > 0:
        return layer.quant.group if layer.quant.group <= 128 else None
    return next((group for group in GROUPS if layer.in_features % group == 0), None)


def arrange(layer: Any) -> tuple[torch.Tensor, ...]:
    """(indices, scale, offset) as `kernels.cpp` reads them: in its wide form where processor and group allow it."""
    return laid_out(layer, wide=wide_here() and step_of(layer) % 32 == 0)


def wide_here() -> bool:
    """Whether the compiled library has the wide form."""
    library = native.library()
    return library is not None and bool(library.graft_lut_wide())


def laid_out(layer: Any, wide: bool) -> tuple[torch.Tensor, ...]:
    """`arrange` in a given form."""
    spec, group = layer.quant, step_of(layer)
    rows, inputs = layer.out_features, layer.in_features
    groups, tiles = inputs // group, -(-rows // TILE)
    codes = torch.nn.functional.pad(unpack(layer.planes, inputs), (0, 0, 0, tiles * TILE - rows))
    bits = (codes[:, None] >> torch.arange(spec.bits, dtype=torch.uint8)[:, None]) & 1
    quads = (bits.unflatten(2, (-1, 4)) << torch.arange(4, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    if wide:
        quads = quads.view(tiles, TILE, spec.bits, groups, group // 32, 2, 4)
        indices = (quads[..., 0, :] | (quads[..., 1, :] << 4)).permute(0, 3, 2, 4, 1, 5).contiguous()
    else:
        indices = quads[..., ::2] | (quads[..., 1::2] << 4)
        indices = indices.view(tiles, TILE, spec.bits, groups, group // 8).permute(0, 3, 2, 4, 1).contiguous()
    tensors = layer.form.named([layer.planes, *(getattr(layer, name) for name in layer.form.names[1:])])
    scale = scales.load(tensors, spec)
    zero = tensors["zero"].float() if "zero" in tensors else torch.full_like(scale, grids.fixed_zero(spec))
    offset = scale * ((2**spec.bits - 1) / 2 - zero)
    return (indices, *(_tiled(part, rows, groups, tiles, wide) for part in (scale, offset)))


def _tiled(values: torch.Tensor, rows: int, groups: int, tiles: int, wide: bool) -> torch.Tensor:
    full = values.expand(rows, -1) if values.shape[1] == groups else values.expand(rows, 1).expand(rows, groups)
    padded = torch.nn.functional.pad(full, (0, 0, 0, tiles * TILE - rows))
    if wide:
        return padded.view(tiles, TILE, groups).transpose(1, 2).contiguous()
    padded = padded.view(tiles, TILE // 2, 2, groups)
    return padded.permute(0, 3, 2, 1).reshape(tiles, groups, TILE).contiguous()


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    spec, indices = layer.quant, layer._layout[0]
    if indices.dim() == 6:
        indices = indices.permute(0, 4, 2, 1, 3, 5)
        quads = torch.stack([indices & 15, indices >> 4], -2).flatten(3)
    else:
        indices = indices.permute(0, 4, 2, 1, 3).flatten(3)
        quads = torch.stack([indices & 15, indices >> 4], -1).flatten(3)
    bits = ((quads[..., None] >> torch.arange(4, dtype=torch.uint8)) & 1).flatten(3)
    shifts = torch.arange(spec.bits, dtype=torch.uint8)[:, None]
    codes = (bits << shifts).sum(2, dtype=torch.uint8).flatten(0, 1)
    return pack(codes[: layer.out_features], spec.bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix: (…, N) in x's dtype."""
    return lut_matmul(x, *layer._layout, layer.out_features, step_of(layer))


@torch.library.custom_op("graft::lut_matmul", mutates_args=(), device_types="cpu")
def lut_matmul(
    x: torch.Tensor, indices: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, outputs: int, group: int
) -> torch.Tensor:
    """x (…, K) times a matrix arranged for lookup: (…, N)."""
    library = native.library()
    assert library is not None
    inputs = x.shape[-1]
    rows = x.reshape(-1, inputs).float().contiguous()
    y = torch.empty(rows.shape[0], outputs, dtype=torch.float32)
    wide = int(indices.dim() == 6)
    sizes = (rows.shape[0], outputs, inputs, group, indices.shape[2], wide, torch.get_num_threads())
    library.graft_lut(*(native.pointer(t) for t in (indices, scale, offset, rows, y)), *map(ctypes.c_int64, sizes))
    return y.to(x.dtype).reshape(*x.shape[:-1], outputs)


@lut_matmul.register_fake
def _(x, indices, scale, offset, outputs, group):
    return x.new_empty(*x.shape[:-1], outputs)
