"""Rounding of a layer's inputs while it runs, and exact products of integers.

Per token: symmetric int8 or int4, or bipolar codes. LLM.int8() takes the columns with an outlier out (Dettmers et al.
2022). FMPQ rounds blocks of 128 inputs, those with outliers to int8 and the others to int4 (Liu et al. 2024). The
functions return integers and scales; nothing here knows how weights are stored.
"""

from __future__ import annotations

import torch

from core.errors import DataError

OUTLIER = 6.0
MIXED_BLOCK = 128


def per_token(x: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """x (M, K) → integer codes int8 (M, K) in ±(2**(bits−1) − 1), scale fp32 (M, 1). Rows of zeros stay zero.

    Raises:
        DataError: an input that is not finite.
    """
    top = 2 ** (bits - 1) - 1
    x = x.float()
    peak = x.abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(x.shape[0], 1)
    _refuse_not_finite(peak)
    peak = torch.where(peak == 0, torch.ones_like(peak), peak)
    return (x * (top / peak)).round().clamp(-top, top).to(torch.int8), peak / top


def bipolar(x: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """x (M, K) → odd integers int16 in ±(2**bits − 1), scale fp32 (M, 1): x ≈ scale · codes (Ma et al. 2024)."""
    top = 2**bits - 1
    x = x.float()
    peak = x.abs().amax(1, keepdim=True)
    _refuse_not_finite(peak)
    scale = torch.where(peak == 0, torch.ones_like(peak), peak / top)
    index = ((x / scale + top) / 2).round().clamp(0, top)
    return (2 * index - top).to(torch.int16), scale


def split(x: torch.Tensor, threshold: float = OUTLIER) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (M, K) → int8 codes with outlier columns at zero, scale (M, 1), mask (K,) of those columns.

    The row maximum is taken with the outlier elements left out and the rest of their columns counted, as bitsandbytes
    does.
    """
    x = x.float()
    large = x.abs() >= threshold
    columns = large.any(0)
    codes, scale = per_token(x.masked_fill(large, 0.0))
    return codes.masked_fill(columns, 0), scale, columns


def mixed(x: torch.Tensor, high_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (M, K) → int8 codes (M, K), scales (M, ceil(K / 128)); the first `high_blocks` blocks in 8 bits, the rest in 4.

    One dynamic scale stands for each token and block.
    """
    rows, inputs = x.shape
    blocks = -(-inputs // MIXED_BLOCK)
    x = torch.nn.functional.pad(x.float(), (0, blocks * MIXED_BLOCK - inputs)).view(rows, blocks, MIXED_BLOCK)
    top = torch.full((blocks, 1), 7.0, device=x.device)
    top[:high_blocks] = 127.0
    peak = x.abs().amax(2, keepdim=True)
    _refuse_not_finite(peak)
    scale = torch.where(peak == 0, torch.ones_like(peak), peak / top)
    codes = torch.maximum(torch.minimum((x / scale).round(), top), -top).to(torch.int8)
    return codes.flatten(1)[:, :inputs], scale[..., 0]


def integer_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (M, K) · b (N, K)ᵀ of integers, exact: int32 through the int8 instruction where it applies, else by fp64.

    fp64 holds every integer below 2**53, so its sums are exact in any order.
    """
    if a.dtype == b.dtype == torch.int8 and _int8_works(a, b):
        padded = torch.nn.functional.pad(a, (0, 0, 0, max(0, 17 - a.shape[0])))
        return torch._int_mm(padded, b.t())[: a.shape[0]]
    return (a.double() @ b.double().t()).to(torch.int64)


def _int8_works(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() > 0 and a.shape[1] % 8 == 0 and b.shape[0] % 8 == 0


def _refuse_not_finite(peak: torch.Tensor) -> None:
    # Only on a CPU: elsewhere asking would wait for the device.
    if peak.device.type == "cpu" and not bool(torch.isfinite(peak).all()):
        raise DataError("an activation is not finite", hint="look for a learning rate or a cast that overflows")
