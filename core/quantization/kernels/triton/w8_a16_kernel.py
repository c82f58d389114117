"""The Triton kernels of `w8_a16`; importing this module needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def w8_tile(
    x, codes, scale, zero, out, rows, outputs, inputs, groups, share,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BN outputs for all rows over `share` steps of BK inputs, each inside one group; the part of K is program 1."""
    n = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    m = tl.arange(0, BM)
    first, steps = tl.program_id(1) * share, inputs // BK
    inside = tl.minimum(n, outputs - 1).to(tl.int64)
    total = tl.zeros((BN, BM), dtype=tl.float32)
    for turn in range(share):
        # behind the last step stands it again, times zero
        there = first + turn < steps
        k = tl.minimum(first + turn, steps - 1) * BK + tl.arange(0, BK)[None, :]
        group = tl.minimum(first + turn, steps - 1) * BK // (inputs // groups)
        # a code behind 2^23 is a float of value 2^23 + code: bit operations, where conversions would set the pace
        lifted = (tl.load(codes + inside * inputs + k).to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
        known = (lifted - 8388608.0) - tl.load(zero + inside * groups + group)
        rows_of_x = tl.load(x + m[:, None].to(tl.int64) * inputs + k, mask=(m[:, None] < rows) & there, other=0.0)
        # a code less its zero point has at most eight bits, which bf16 holds
        d = tl.dot(known.to(x.dtype.element_ty), tl.trans(rows_of_x))
        total += d * tl.load(scale + inside * groups + group)
    to = out + (tl.program_id(1) * rows + m[None, :]).to(tl.int64) * outputs + n
    tl.store(to, total.to(out.dtype.element_ty), mask=(n < outputs) & (m[None, :] < rows))


@triton.jit
def w8_decode(codes, scale, zero, out, inputs, groups, BK: tl.constexpr):
    """One output and BK inputs, all of one group, as numbers."""
    n = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    place = n * groups + tl.program_id(1) * BK // (inputs // groups)
    known = tl.load(codes + n * inputs + k).to(tl.float32) - tl.load(zero + place)
    tl.store(out + n * inputs + k, (known * tl.load(scale + place)).to(out.dtype.element_ty))
