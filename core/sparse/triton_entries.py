"""The kernels of `entries`; importing this module needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _add_into(made, source, positions, values, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(positions + at, mask=inside, other=0).to(tl.int64)
    total = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(made + place, total.to(made.dtype.element_ty), mask=inside)


@triton.jit
def _read(vector, positions, start, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(positions + at, mask=inside, other=0).to(tl.int64) - start
    found = tl.load(vector + place, mask=inside, other=0.0)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)


def add_into(made: torch.Tensor, source: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
    count = len(positions)
    if count:
        _add_into[(triton.cdiv(count, BLOCK),)](made, source, positions, values, count, BLOCK=BLOCK)


def read(vector: torch.Tensor, positions: torch.Tensor, start: int, out: torch.Tensor) -> None:
    count = len(positions)
    if count:
        _read[(triton.cdiv(count, BLOCK),)](vector, positions, start, out, count, BLOCK=BLOCK)
