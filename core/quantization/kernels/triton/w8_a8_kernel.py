"""The Triton kernels of `w8_a8`; importing this module needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_tokens(x, taken, codes, step, inputs, threshold, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """One token: its peak, its codes in ±127, its step. Taken columns become zero, their outliers do not count."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    values = tl.load(x + row * inputs + k, mask=k < inputs, other=0.0).to(tl.float32)
    counted = tl.abs(values)
    if SPLIT:
        out = tl.load(taken + k, mask=k < inputs, other=0) != 0
        counted = tl.where(out & (counted >= threshold), 0.0, counted)
        values = tl.where(out, 0.0, values)
    peak = tl.max(counted)
    peak = tl.where(peak == 0.0, 1.0, peak)
    scaled = values * tl.div_rn(127.0, peak)
    # adding and taking off 1.5 · 2^23 rounds to the nearest, ties to even
    whole = (scaled + 12582912.0) - 12582912.0
    tl.store(codes + row * inputs + k, tl.clamp(whole, -127.0, 127.0).to(tl.int8), mask=k < inputs)
    tl.store(step + row, tl.div_rn(peak, 127.0))


@triton.jit
def w8_a8_tile(
    codes, weight, step, scale, added, out, rows, outputs, inputs,
    SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BN outputs for all rows."""
    n = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    m = tl.arange(0, BM)[None, :]
    total = tl.zeros((BN, BM), dtype=tl.int32)
    for start in range(0, inputs, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(weight + n.to(tl.int64) * inputs + k[None, :], mask=(n < outputs) & (k[None, :] < inputs), other=0)
        x = tl.load(codes + m.to(tl.int64) * inputs + k[:, None], mask=(m < rows) & (k[:, None] < inputs), other=0)
        total += tl.dot(w, x)
    inside = (n < outputs) & (m < rows)
    y = total.to(tl.float32) * tl.load(step + m, mask=m < rows, other=0.0)
    y = y * tl.load(scale + n, mask=n < outputs, other=0.0)
    to = m.to(tl.int64) * outputs + n
    if SPLIT:
        y += tl.load(added + to, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + to, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def scale_sums(sums, step, scale, added, out, outputs, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """A row's integer sums times its step and the outputs' scales."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < outputs
    to = row * outputs + n
    y = tl.load(sums + to, mask=inside, other=0).to(tl.float32) * tl.load(step + row)
    y = y * tl.load(scale + n, mask=inside, other=0.0)
    if SPLIT:
        y += tl.load(added + to, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + to, y.to(out.dtype.element_ty), mask=inside)
