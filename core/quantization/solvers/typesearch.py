"""BitMoD: each group takes the best of four codebooks (Chen et al. 2024).

A codebook is a small float grid whose spare code adds resolution or range on one side. All four are tried, each with
the scale that its largest level asks for, with the one that fits both of its ends to the group's, and with the latter
shrunken step by step, which clips a few values and rounds the others more finely. The pair of codebook and scale with
the least squared error is kept.
"""

from __future__ import annotations

from typing import Any

import torch

from core.quantization import scales
from core.quantization.grids import encode, tables
from core.quantization.solvers.encoded import Encoded, decoded
from core.quantization.solvers.rtn import grouped
from core.quantization.spec import QuantSpec

SHRUNKEN = (1.0, 0.9, 0.8, 0.7)


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Codes, scales and selectors of `weight` (N, K). `stats.clip` (N, G), where given, shrinks each group's range."""
    weight = weight.float()
    parts = grouped(weight, spec)
    share = 1.0 if stats is None or stats.clip is None else stats.clip
    low, high = -parts.amin(-1).clamp_max(0) * share, parts.amax(-1).clamp_min(0) * share
    peak, book = torch.maximum(low, high), tables(spec, weight.device)
    best = torch.full_like(peak, torch.inf)
    chosen, scale = torch.zeros_like(peak, dtype=torch.uint8), torch.ones_like(peak)
    for number, levels in enumerate(book):
        edges = (levels[1:] + levels[:-1]) / 2
        # the second scale is finer where the codebook's longer end lies on the group's longer side
        ends = torch.maximum(high / levels[-1], low / -levels[0])
        for trial in (peak / levels.abs().max(), *(ends * shrunken for shrunken in SHRUNKEN)):
            trial = torch.where(peak == 0, torch.ones_like(peak), trial)
            step = scales.rounded(trial, spec)[..., None]
            rounded = levels[torch.searchsorted(edges, (parts / step).contiguous())] * step
            error = (rounded - parts).square().sum(-1)
            better = error < best
            best, scale = torch.where(better, error, best), torch.where(better, trial, scale)
            chosen = torch.where(better, number, chosen).to(torch.uint8)
    params = {**scales.store(scale, spec), "selector": chosen}
    return Encoded(
        encode(weight, decoded(params, spec), spec),
        params,
        notes={"types": torch.bincount(chosen.flatten().long(), minlength=len(book)).tolist()},
    )
