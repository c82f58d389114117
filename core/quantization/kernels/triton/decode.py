"""Decode codes of any grid into a dense matrix on a GPU, in one pass over the planes.

Training, and products of many rows, decode a matrix and hand it to the vendor's product; this is that decoding, at the
speed of memory. The reference's tensor operations compute the same values, several passes long.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from core.quantization import grids, scales
from core.quantization.spec import TENSOR, QuantSpec


@functools.cache
def available() -> bool:
    """Whether Triton is installed and there is a GPU."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.is_available()


def decode(tensors: dict[str, torch.Tensor], spec: QuantSpec, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """The dense matrix (N, inputs) in `dtype` of planes (N, bits, words) and what decodes them; fp32 inside."""
    import triton

    planes = tensors["planes"]
    rows = planes.shape[0]
    out = torch.empty(rows, inputs, dtype=dtype, device=planes.device)
    learned = spec.grid == "learned"
    scale = zero = selector = planes
    groups, shared = 1, spec.group == TENSOR
    table = planes
    if learned:
        table = tensors["levels"].float().contiguous()
    else:
        scale = scales.load(tensors, spec).contiguous()
        groups = scale.shape[1]
        if spec.codebook:
            table = grids.tables(spec, planes.device).contiguous()
            selector = tensors.get("selector", planes)
        zero = tensors.get("zero", planes)
    kind = 2 if learned else (1 if spec.codebook else 0)
    words = planes.shape[2]
    _kernel()[(rows, triton.cdiv(words, 8))](
        planes, scale, zero, selector, table, out, inputs, words, groups, -(-inputs // groups),
        0.0 if kind else grids.fixed_zero(spec), BITS=spec.bits, KIND=kind, ZERO="zero" in tensors and not learned,
        SELECT="selector" in tensors, SHARED=shared, WORDS=8,
    )  # fmt: skip
    return out


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def decode_planes(
        planes, scale, zero, selector, table, out, inputs, words, groups, width, fixed,
        BITS: tl.constexpr, KIND: tl.constexpr, ZERO: tl.constexpr, SELECT: tl.constexpr, SHARED: tl.constexpr,
        WORDS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
        bit = tl.arange(0, 32)
        codes = tl.zeros((WORDS, 32), dtype=tl.int32)
        for plane in tl.static_range(BITS):
            packed = tl.load(planes + (row * BITS + plane) * words + word, mask=word < words, other=0)
            codes += ((packed[:, None] >> bit[None, :]) & 1) << plane
        k = word[:, None] * 32 + bit[None, :]
        inside = k < inputs
        owner = 0 if SHARED else row
        if KIND == 2:
            value = tl.load(table + owner * (1 << BITS) + codes, mask=inside, other=0.0)
        else:
            place = owner * groups + k // width
            s = tl.load(scale + place, mask=inside, other=0.0)
            if KIND == 1:
                book = codes
                if SELECT:
                    book += tl.load(selector + place, mask=inside, other=0).to(tl.int32) << BITS
                value = tl.load(table + book, mask=inside, other=0.0) * s
            else:
                if ZERO:
                    value = (codes.to(tl.float32) - tl.load(zero + place, mask=inside, other=0).to(tl.float32)) * s
                else:
                    value = (codes.to(tl.float32) - fixed) * s
        tl.store(out + row * inputs + k, value.to(out.dtype.element_ty), mask=inside)

    return decode_planes
