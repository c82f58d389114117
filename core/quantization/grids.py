"""What a code can mean: affine integers, fixed tables, tables with a selector, learned levels.

Every grid decodes codes (N, K) to values: affine s·(q − z), tables s·T[selector][q], learned T[row][q]. The bipolar
grid is affine with z = (2^b − 1)/2, so its values are odd multiples of s (Ma et al. 2024); ternary has z = 1 and leaves
code 3 unused; the balanced grid has 2^(b−1) + 1 values around zero (Zeng et al. 2024). Scales are given here in fp32;
how they are stored is `scales`' business.
"""

from __future__ import annotations

import functools

import torch

from core.quantization.spec import QuantSpec

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (Dettmers et al. 2023).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# A float grid and one spare code for more resolution or more range on one side (Chen et al. 2024).
BITMOD = {
    3: tuple(tuple(sorted((0.0, 1, -1, 2, -2, 4, -4, spare))) for spare in (3, -3, 6, -6)),
    4: tuple(
        tuple(sorted((0.0, *(s * v for v in (1, 2, 3, 4, 6, 8, 12) for s in (1, -1)), spare)))
        for spare in (10, -10, 16, -16)
    ),
}  # fmt: skip


def tables(spec: QuantSpec, device: torch.device | str = "cpu") -> torch.Tensor:
    """fp32 (selectors, 2**bits) of a codebook grid, each sorted; made once for a device."""
    return _tables(spec.grid, spec.bits, torch.device(device))


@functools.cache
def _tables(grid: str, bits: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor((NF4,) if grid == "nf4" else BITMOD[bits], dtype=torch.float32, device=device)


def fixed_zero(spec: QuantSpec) -> float:
    """The zero point of an affine grid that stores none."""
    if spec.grid == "bipolar":
        return (2**spec.bits - 1) / 2
    if spec.grid == "balanced":
        return float(2 ** (spec.bits - 2))
    return 1.0 if spec.grid == "ternary" else float(2 ** (spec.bits - 1))


def highest_code(spec: QuantSpec) -> int:
    """The largest code in use."""
    if spec.grid == "ternary":
        return 2
    return 2 ** (spec.bits - 1) if spec.grid == "balanced" else 2**spec.bits - 1


def spread(values: torch.Tensor, inputs: int) -> torch.Tensor:
    """One value for each group (N or 1, G) → one for each input, (N or 1, inputs)."""
    return values if values.shape[1] == 1 else values.repeat_interleave(inputs // values.shape[1], 1)


def decode(codes: torch.Tensor, params: dict[str, torch.Tensor], spec: QuantSpec) -> torch.Tensor:
    """fp32 values (N, K) of codes (N, K).

    Args:
        params: `levels` (N or 1, 2**b) of a learned grid; else `scale` fp32 (N or 1, G), `zero` (N, G) where the spec
            stores one, `selector` (N, G) where there are several tables.
    """
    inputs = codes.shape[1]
    if spec.grid == "learned":
        levels = params["levels"].float()
        return levels.expand(codes.shape[0], -1).gather(1, codes.long())
    scale = spread(params["scale"], inputs)
    if spec.codebook:
        table = tables(spec, codes.device)
        if "selector" not in params:
            return table[0][codes.long()] * scale
        index = spread(params["selector"].long(), inputs) * table.shape[1] + codes.long()
        return table.flatten()[index] * scale
    zero = spread(params["zero"].float(), inputs) if "zero" in params else fixed_zero(spec)
    return (codes.float() - zero) * scale


def encode(values: torch.Tensor, params: dict[str, torch.Tensor], spec: QuantSpec) -> torch.Tensor:
    """The nearest codes (N, K) to values (N, K), with the params of `decode`.

    `inverse` (N or 1, G), where given, is what values are multiplied with in place of a division by the scale.
    """
    inputs = values.shape[1]
    if spec.grid == "learned":
        levels, order = params["levels"].float().sort(1)
        edges = (levels[:, 1:] + levels[:, :-1]) / 2
        rank = torch.searchsorted(
            edges.expand(values.shape[0], -1).contiguous(), values.float().contiguous(), right=False
        )
        return order.expand(values.shape[0], -1).gather(1, rank).to(torch.uint8)
    if "inverse" in params:
        scaled = values.float() * spread(params["inverse"], inputs)
    else:
        scale = spread(params["scale"], inputs)
        scaled = values.float() / torch.where(scale == 0, torch.ones_like(scale), scale)
    if spec.codebook:
        return _nearest_in_table(scaled, params, spec)
    zero = spread(params["zero"].float(), inputs) if "zero" in params else fixed_zero(spec)
    # rounding before an integer zero is added keeps all bits of the fraction
    codes = (scaled + zero).round() if spec.grid == "bipolar" else scaled.round() + zero
    return codes.clamp(0, highest_code(spec)).to(torch.uint8)


def _nearest_in_table(scaled: torch.Tensor, params: dict[str, torch.Tensor], spec: QuantSpec) -> torch.Tensor:
    table = tables(spec, scaled.device)
    edges = (table[:, 1:] + table[:, :-1]) / 2
    if "selector" not in params:
        return torch.searchsorted(edges[0], scaled.contiguous()).to(torch.uint8)
    selector = spread(params["selector"].long(), scaled.shape[1])
    codes = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    for number in range(table.shape[0]):
        found = torch.searchsorted(edges[number], scaled.contiguous()).to(torch.uint8)
        codes = torch.where(selector == number, found, codes)
    return codes
