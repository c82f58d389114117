"""Codes as bit planes: one storage for every width from 1 to 8.

`planes[n, i, k // 32]` holds in bit `k % 32` the bit i of the code of row n, input k. Rows stand first, so a matrix is
cut by rows as a dense one is; three bits take three planes and straddle nothing. The inputs are padded with zeros to a
whole word.
"""

from __future__ import annotations

import torch

WORD = 32
_CHUNK = 1 << 24


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes (N, K) below 2**bits → int32 planes (N, bits, ceil(K / 32))."""
    rows, inputs = codes.shape
    words = -(-inputs // WORD)
    planes = torch.empty(rows, bits, words, dtype=torch.int32, device=codes.device)
    weights = (1 << torch.arange(WORD, device=codes.device)).to(torch.int64)
    shifts = torch.arange(bits, device=codes.device, dtype=torch.uint8)[:, None]
    step = max(1, _CHUNK // (words * WORD * bits))
    for start in range(0, rows, step):
        part = torch.nn.functional.pad(codes[start : start + step], (0, words * WORD - inputs))
        set_bits = (part[:, None, :] >> shifts) & 1
        summed = (set_bits.unflatten(-1, (words, WORD)).to(torch.int64) * weights).sum(-1)
        planes[start : start + step] = torch.where(summed >= 1 << 31, summed - (1 << 32), summed).to(torch.int32)
    return planes


def unpack(planes: torch.Tensor, inputs: int) -> torch.Tensor:
    """The inverse of `pack`: uint8 codes (N, inputs)."""
    rows, bits, words = planes.shape
    codes = torch.zeros(rows, words * WORD, dtype=torch.uint8, device=planes.device)
    shifts = torch.arange(WORD, device=planes.device, dtype=torch.int32)
    step = max(1, _CHUNK // (words * WORD))
    for start in range(0, rows, step):
        for bit in range(bits):
            plane = (planes[start : start + step, bit, :, None] >> shifts) & 1
            codes[start : start + step] |= plane.to(torch.uint8).flatten(1) << bit
    return codes[:, :inputs].contiguous() if words * WORD != inputs else codes
