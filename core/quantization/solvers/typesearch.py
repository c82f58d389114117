"""BitMoD: each group takes the best of four codebooks (Chen et al. 2024).

A codebook is a small float grid whose spare code adds resolution or range on one side. The choice is exact: all four
are tried and the one with the least squared error is kept, with the scale that its largest level asks for.
"""

from __future__ import annotations

from typing import Any

import torch

from core.quantization import scales
from core.quantization.grids import decode, encode, tables
from core.quantization.solvers.encoded import Encoded, decoded
from core.quantization.solvers.rtn import grouped
from core.quantization.spec import QuantSpec


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Codes, scales and selectors of `weight` (N, K)."""
    weight = weight.float()
    parts = grouped(weight, spec)
    book = tables(spec, weight.device)
    peak = parts.abs().amax(-1)
    if stats is not None and stats.clip is not None:
        peak = peak * stats.clip
    best = torch.full_like(peak, torch.inf)
    chosen = torch.zeros_like(peak, dtype=torch.uint8)
    for number, levels in enumerate(book):
        scale = torch.where(peak == 0, torch.ones_like(peak), peak / levels.abs().max())
        trial = {"scale": scales.rounded(scale, spec), "selector": torch.full_like(chosen, number)}
        error = (decode(encode(weight, trial, spec), trial, spec) - weight).square()
        error = error.unflatten(1, (peak.shape[1], -1)).sum(-1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, number, chosen).to(torch.uint8)
    top = book.abs().amax(1)[chosen.long()]
    scale = torch.where(peak == 0, torch.ones_like(peak), peak / top)
    params = {**scales.store(scale, spec), "selector": chosen}
    return Encoded(
        encode(weight, decoded(params, spec), spec),
        params,
        notes={"types": torch.bincount(chosen.flatten().long(), minlength=len(book)).tolist()},
    )
