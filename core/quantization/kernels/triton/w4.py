"""The Triton twin of the 4-bit CUDA kernel: the same layout, any number of rows.

Up to 64 rows are multiplied straight from the codes; for more, one pass decodes the matrix for a dense product. It also
serves as the portable form for few rows, where the runtime compiler for CUDA is missing.
"""

from __future__ import annotations

import torch

from core.quantization.kernels.cuda.program import processors

MOST_ROWS, ROWS, GROUP, OUTPUTS = 64, 16, 128, 64


def multiply(
    rows: torch.Tensor, weights: torch.Tensor, both: torch.Tensor, tables: torch.Tensor, book: int
) -> torch.Tensor:
    """rows (M, K) in bf16 or fp16 times the matrix of a layout (see `cuda.w4_a16`): (M, N)."""
    from core.quantization.kernels.triton.w4_kernel import w4_tile

    count, inputs = rows.shape
    outputs, halves = weights.shape[0] * ROWS, max(1, both.shape[2])
    if count > MOST_ROWS:
        return rows @ decode(weights, both, tables, book, rows.dtype).t()
    groups, programs = inputs // GROUP, -(-outputs // OUTPUTS)
    share = -(-groups // parts_of(programs, groups, rows.device))
    parts = -(-groups // share)
    kind = torch.float32 if parts > 1 else rows.dtype
    out = torch.empty(parts, count, outputs, dtype=kind, device=rows.device)
    if count:
        w4_tile[(programs, parts)](
            rows, weights, both, tables[1], out, count, outputs, inputs, share, BOOK=book, HALVES=halves,
            BN=OUTPUTS, BM=next(size for size in (16, 32, 64) if count <= size), num_warps=4,
        )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0).to(rows.dtype)


def decode(
    weights: torch.Tensor, both: torch.Tensor, tables: torch.Tensor, book: int, dtype: torch.dtype
) -> torch.Tensor:
    """The dense matrix (N, K) of a layout."""
    from core.quantization.kernels.triton.w4_kernel import w4_decode

    outputs, groups, halves = weights.shape[0] * ROWS, weights.shape[1], max(1, both.shape[2])
    out = torch.empty(outputs, groups * GROUP, dtype=dtype, device=weights.device)
    w4_decode[(weights.shape[0], groups * halves)](
        weights, both, tables[1], out, groups * GROUP, BOOK=book, HALVES=halves, BN=ROWS
    )
    return out


def parts_of(programs: int, steps: int, device: torch.device) -> int:
    """Into how many parts K is cut, so that every multiprocessor has two programs."""
    return min(steps, max(1, 2 * _processors(device) // programs))


def _processors(device: torch.device) -> int:
    return processors(device.index) if device.type == "cuda" else 4
