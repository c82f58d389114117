"""The Triton kernels of `w4`; importing this module needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def codes_of(weights, n, k, group, groups, BY_ROW: tl.constexpr):
    """int32 codes of outputs n (N, 1) and inputs k (1, K) of a group of 128, out of the tensor core's fragments."""
    lane = (n % 8) * 4 + (k // 8) % 4
    half = (n // 8) % 2
    if BY_ROW:
        word = (k // 32) * 2 + half
        nibble = k % 8
    else:
        word = (k // 32) * 2 + (k // 4) % 2
        nibble = (k % 2) * 4 + (k // 2) % 2 * 2 + half
    place = (word // 4) * 128 + lane * 4 + word % 4
    unit = ((n // 16) * groups + group).to(tl.int64)
    return (tl.load(weights + unit * 256 + place) >> (nibble * 4)) & 15


@triton.jit
def scale_words(both, n, group, groups, part, HALVES: tl.constexpr):
    """The words (N, 1) of scales of outputs n for one part of a group."""
    unit = ((n // 16) * groups + group).to(tl.int64)
    return tl.load(both + (unit * HALVES + part) * 16 + n % 16)


@triton.jit
def numbers_of(codes, words, n, tables, BOOK: tl.constexpr):
    """fp32 numbers that codes stand for, before the scale; `tables` are (T, 32) bytes of fp16, low ones first."""
    if BOOK == 0:
        zero = ((words >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        # a code behind 2^23 is a float whose value is 2^23 + code
        found = ((codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0) - zero
    else:
        if BOOK == 1:
            place = codes
        elif BOOK == 2:
            place = (words & 3) * 32 + codes
        else:
            place = n * 32 + codes
        level = tl.load(tables + place).to(tl.int16) | (tl.load(tables + place + 16).to(tl.int16) << 8)
        found = level.to(tl.float16, bitcast=True).to(tl.float32)
    return found


@triton.jit
def scales_of(words, BOOK: tl.constexpr):
    """fp32 scales out of their words."""
    if BOOK == 0:
        found = (words & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        found = words.to(tl.float32, bitcast=True)
    return found


@triton.jit
def w4_tile(
    x, weights, both, tables, out, rows, outputs, inputs, share,
    BOOK: tl.constexpr, HALVES: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """BN outputs for all rows over `share` groups of inputs; out (parts, rows, outputs), the part is program 1."""
    n = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    m = tl.arange(0, BM)
    groups = inputs // 128
    first = tl.program_id(1) * share
    # outputs behind the last read the last one again, and are not written
    inside = tl.minimum(n, outputs - 1)
    WIDTH: tl.constexpr = 128 // HALVES
    total = tl.zeros((BN, BM), dtype=tl.float32)
    for step in range(share):
        # behind the last group stands it again, times zero
        there = first + step < groups
        group = tl.minimum(first + step, groups - 1)
        for part in tl.static_range(HALVES):
            k = part * WIDTH + tl.arange(0, WIDTH)[None, :]
            codes = codes_of(weights, inside, k, group, groups, BOOK != 0)
            words = codes
            if BOOK != 3:
                words = scale_words(both, inside, group, groups, part, HALVES)
            values = numbers_of(codes, words, inside, tables, BOOK).to(x.dtype.element_ty)
            at = x + m[:, None].to(tl.int64) * inputs + group * 128 + k
            d = tl.dot(values, tl.trans(tl.load(at, mask=(m[:, None] < rows) & there, other=0.0)))
            total += d if BOOK == 3 else d * scales_of(words, BOOK)
    to = out + (tl.program_id(1) * rows + m[None, :]).to(tl.int64) * outputs + n
    tl.store(to, total.to(out.dtype.element_ty), mask=(n < outputs) & (m[None, :] < rows))


@triton.jit
def w4_decode(
    weights, both, tables, out, inputs, BOOK: tl.constexpr, HALVES: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """BN outputs and one part of a group as a dense matrix (N, inputs)."""
    n = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    WIDTH: tl.constexpr = 128 // HALVES
    group, part = tl.program_id(1) // HALVES, tl.program_id(1) % HALVES
    k = part * WIDTH + tl.arange(0, WIDTH)[None, :]
    codes = codes_of(weights, n, k, group, inputs // 128, BOOK != 0)
    words = codes
    if BOOK != 3:
        words = scale_words(both, n, group, inputs // 128, part, HALVES)
    values = numbers_of(codes, words, n, tables, BOOK)
    if BOOK != 3:
        values = values * scales_of(words, BOOK)
    tl.store(out + n.to(tl.int64) * inputs + group * 128 + k, values.to(out.dtype.element_ty))
