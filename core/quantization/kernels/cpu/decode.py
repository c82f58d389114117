"""Decode codes of any grid into a dense fp32 matrix on a CPU, in one pass; the values are the reference's own."""

from __future__ import annotations

import ctypes

import torch

from core.quantization import grids, scales
from core.quantization.kernels.cpu import native
from core.quantization.spec import TENSOR, QuantSpec


def available() -> bool:
    """Whether the compiled kernels are here."""
    return native.library() is not None


def decode(tensors: dict[str, torch.Tensor], spec: QuantSpec, inputs: int) -> torch.Tensor:
    """fp32 (N, inputs) of planes (N, bits, words) and what decodes them."""
    library = native.library()
    assert library is not None
    planes = tensors["planes"].detach()
    rows, learned = planes.shape[0], spec.grid == "learned"
    out = torch.empty(rows, inputs)
    scale = None if learned else scales.load(tensors, spec).contiguous()
    table = None
    if learned:
        table = tensors["levels"].float().contiguous()
    elif spec.codebook:
        table = grids.tables(spec).contiguous()
    zero, selector = (None if learned else tensors.get(name) for name in ("zero", "selector"))
    kind = 2 if learned else int(spec.codebook)
    sizes = (
        rows, inputs, spec.bits, 1 if scale is None else scale.shape[1], kind, int(spec.group == TENSOR),
        torch.get_num_threads(),
    )  # fmt: skip
    library.graft_decode(
        *(None if t is None else native.pointer(t) for t in (planes, scale, zero, selector, table, out)),
        *map(ctypes.c_int64, sizes),
        ctypes.c_double(0.0 if kind else grids.fixed_zero(spec)),
    )
    return out
