"""Rounding to the nearest code, with the range of each group taken from its values.

Symmetric grids scale the largest magnitude to the largest level, asymmetric ones map the range onto the codes. A row of
zeros gets scale one and decodes to exact zeros.
"""

from __future__ import annotations

from typing import Any

import torch

from core.quantization import scales
from core.quantization.grids import encode, fixed_zero, highest_code, tables
from core.quantization.solvers.encoded import Encoded, decoded
from core.quantization.spec import TENSOR, QuantSpec


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Codes of `weight` (N, K). `stats.clip` (N, G), where given, shrinks the range of each group."""
    clip = None if stats is None else stats.clip
    params = ranges(weight, spec, clip)
    known = decoded(params, spec)
    if spec.symmetric and spec.scale in ("double", "fp32") and spec.grid != "ternary" and clip is None:
        # bitsandbytes multiplies with top/peak, and before the scales are quantized again: codes equal to its own
        peak = grouped(weight, spec).abs().amax(-1)
        known["inverse"] = torch.where(peak == 0, torch.ones_like(peak), _top(spec) / peak)
    return Encoded(encode(weight.float(), known, spec), params)


def grouped(weight: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """(N, K) as (rows or 1, groups, inputs of a group)."""
    if spec.group == TENSOR:
        return weight.float().reshape(1, 1, -1)
    return weight.float().unflatten(1, (spec.groups(weight.shape[1]), -1))


def ranges(weight: torch.Tensor, spec: QuantSpec, clip: Any = None) -> dict[str, torch.Tensor]:
    """Stored params of each group's range.

    Args:
        clip: shares of the range kept, (N, G), or a pair for the lower and the upper end.
    """
    parts = grouped(weight, spec)
    low_share, high_share = clip if isinstance(clip, tuple) else (clip, clip)
    shares = [1.0 if share is None else share for share in (low_share, high_share)]
    if spec.grid == "ternary":
        mean = parts.abs().mean(-1).clamp_min(1e-5)
        return scales.store(mean, spec)
    if spec.symmetric or spec.grid == "bipolar":
        scale = _absmax_scale(weight, spec) * shares[1]
        return _two_level(scale, None, spec) if spec.scale == "int8" else scales.store(scale, spec)
    # The range holds zero, so that zero is exact.
    low, high = parts.amin(-1).clamp_max(0) * shares[0], parts.amax(-1).clamp_min(0) * shares[1]
    span = high - low
    scale = torch.where(span == 0, torch.ones_like(span), span / highest_code(spec))
    if spec.scale == "int8":
        return _two_level(scale, low, spec, high)
    stored = scales.store(scale, spec)
    zero = (-low / scales.load(stored, spec)).round().clamp(0, highest_code(spec))
    return {**stored, "zero": zero.to(torch.uint8)}


def _absmax_scale(weight: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    peak = grouped(weight, spec).abs().amax(-1)
    if spec.grid == "bipolar":
        # without a level at zero, only a scale of zero decodes to it
        return peak / _top(spec)
    return torch.where(peak == 0, torch.ones_like(peak), peak / _top(spec))


def _top(spec: QuantSpec) -> float:
    """The value of the largest level at scale one."""
    if spec.codebook:
        return float(tables(spec).abs().max())
    return highest_code(spec) - fixed_zero(spec)


def _two_level(
    scale: torch.Tensor, low: torch.Tensor | None, spec: QuantSpec, high: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """An integer for each group inside an 8-bit row.

    With a zero point this is QoQ's protected range: the row is scaled to ±119, so that (q − z)·s stays within int8
    whatever the group's range and rounding (Lin et al. 2024).
    """
    if low is None or high is None:
        return scales.store(scale, spec)
    peak = torch.maximum(high, -low).amax(1, keepdim=True)
    row = torch.where(peak == 0, torch.ones_like(peak), peak / 119.0)
    low8, high8 = (low / row).round(), (high / row).round()
    steps = ((high8 - low8) / highest_code(spec)).round().clamp(1, 255)
    zero = (-low8 / steps).round().clamp(0, highest_code(spec))
    return {"scale": steps.to(torch.uint8), "scale2": row.float(), "zero": zero.to(torch.uint8)}
