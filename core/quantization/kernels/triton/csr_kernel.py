"""The Triton kernel of `csr`; importing this module needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def csr_add(out, x, crow, col, val, outputs, inputs, BN: tl.constexpr, STEP: tl.constexpr):
    """BN outputs of one row of x."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64)
    first = tl.load(crow + n, mask=n < outputs, other=0)
    last = tl.load(crow + n + 1, mask=n < outputs, other=0)
    longest = tl.max(last - first)
    total = tl.zeros((BN,), dtype=tl.float32)
    start = 0
    while start < longest:
        place = first[:, None] + start + tl.arange(0, STEP)[None, :]
        there = place < last[:, None]
        k = tl.load(col + place, mask=there, other=0)
        values = tl.load(val + place, mask=there, other=0.0).to(tl.float32)
        total += tl.sum(values * tl.load(x + row * inputs + k, mask=there, other=0.0).to(tl.float32), 1)
        start += STEP
    to = out + row * outputs + n
    old = tl.load(to, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(to, (old + total).to(out.dtype.element_ty), mask=n < outputs)
