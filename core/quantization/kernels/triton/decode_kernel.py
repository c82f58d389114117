"""The Triton kernel of `decode`; importing this module needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_of(scale, scale2, offset, tree, place, owner, inside, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    """fp32 scales at `place`: floats, integers of a row's second level, or codes of a tree in blocks of `BLOCK`."""
    kept = tl.load(scale + place, mask=inside, other=0)
    if FORMAT == 0:
        found = kept.to(tl.float32)
    elif FORMAT == 1:
        found = kept.to(tl.float32) * tl.load(scale2 + owner)
    else:
        second = tl.load(scale2 + place // BLOCK, mask=inside, other=0.0)
        found = tl.load(tree + kept.to(tl.int32)) * second + tl.load(offset)
    return found


@triton.jit
def decode_planes(
    planes, scale, scale2, offset, tree, zero, selector, table, out, inputs, words, groups, width, fixed,
    BITS: tl.constexpr, KIND: tl.constexpr, ZERO: tl.constexpr, SELECT: tl.constexpr, SHARED: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One row and WORDS words of its planes: assemble codes, look up or scale, write.

    WHOLE says that a word lies in one group, so that a scale is read for a word and not for an input.
    """
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    codes = tl.zeros((WORDS, 32), dtype=tl.int32)
    for plane in tl.static_range(BITS):
        packed = tl.load(planes + (row * BITS + plane) * words + word, mask=word < words, other=0)
        codes += ((packed[:, None] >> bit[None, :]) & 1) << plane
    k = word[:, None] * 32 + bit[None, :]
    inside = k < inputs
    owner = row * 0 if SHARED else row
    if KIND == 2:
        value = tl.load(table + owner * (1 << BITS) + codes, mask=inside, other=0.0).to(tl.float32)
    else:
        if WHOLE:
            real = (word < words)[:, None]
            place = owner * groups + (word * 32 // width)[:, None]
        else:
            real = inside
            place = owner * groups + k // width
        s = scale_of(scale, scale2, offset, tree, place, owner, real, FORMAT, BLOCK)
        if KIND == 1:
            book = codes
            if SELECT:
                book += tl.load(selector + place, mask=real, other=0).to(tl.int32) << BITS
            value = tl.load(table + book) * s
        else:
            if ZERO:
                value = (codes.to(tl.float32) - tl.load(zero + place, mask=real, other=0).to(tl.float32)) * s
            else:
                value = (codes.to(tl.float32) - fixed) * s
    tl.store(out + row * inputs + k, value.to(out.dtype.element_ty), mask=inside)
