"""How scales are stored: as floats, as integers of a second level, or quantized in blocks.

"int8" keeps an integer from 1 to 255 for each group and one float for each row, as QoQ (Lin et al. 2024) and BitMoD
(Chen et al. 2024) do. "double" quantizes the scales less their mean in blocks of 256 with an 8-bit dynamic tree
(Dettmers 2015; Dettmers et al. 2022, 8-bit optimizers), which is QLoRA's double quantization.
"""

from __future__ import annotations

import functools

import torch

from core.quantization.spec import QuantSpec

FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DOUBLE_BLOCK = 256


def dynamic_tree(device: torch.device | str = "cpu") -> torch.Tensor:
    """The 256 values of signed dynamic tree quantization, sorted, in [-1, 1]; made once for a device.

    A value has a sign, an exponent in powers of ten written in unary, and the bits left over as a linear fraction.
    """
    return _dynamic_tree(torch.device(device))


@functools.cache
def _dynamic_tree(device: torch.device) -> torch.Tensor:
    values: list[float] = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2.0
        magnitudes = (10.0 ** (exponent - 6)) * means
        values += magnitudes.tolist()
        values += (-magnitudes).tolist()
    with torch.inference_mode(False):
        return torch.tensor(sorted([*values, 0.0, 1.0]), dtype=torch.float32, device=device)


def store(scale: torch.Tensor, spec: QuantSpec) -> dict[str, torch.Tensor]:
    """fp32 scales (N or 1, G) → what is kept: `scale`, and `scale2` or `scale_offset` where the format has them."""
    if spec.scale in FLOATS:
        dtype = FLOATS[spec.scale]
        tiny = 2.0**-24 if dtype == torch.float16 else 0.0
        return {"scale": scale.clamp_min(tiny).to(dtype)}
    if spec.scale == "int8":
        second = (scale.amax(1, keepdim=True) / 127).clamp_min(1e-12)
        return {"scale": (scale / second).round().clamp(1, 255).to(torch.uint8), "scale2": second.float()}
    return _store_double(scale)


def _store_double(scale: torch.Tensor) -> dict[str, torch.Tensor]:
    tree = dynamic_tree(scale.device)
    edges = (tree[1:] + tree[:-1]) / 2
    flat = scale.float().flatten()
    offset = flat.mean()
    padded = torch.nn.functional.pad(flat - offset, (0, -flat.numel() % DOUBLE_BLOCK)).view(-1, DOUBLE_BLOCK)
    second = padded.abs().amax(1)
    normed = padded * (1.0 / torch.where(second == 0, torch.ones_like(second), second))[:, None]
    codes = torch.searchsorted(edges, normed).to(torch.uint8).flatten()[: flat.numel()]
    return {"scale": codes.view_as(scale), "scale2": second, "scale_offset": offset.view(1)}


def load(params: dict[str, torch.Tensor], spec: QuantSpec) -> torch.Tensor:
    """The fp32 scales (N or 1, G) that `store` kept."""
    kept = params["scale"]
    if spec.scale in FLOATS:
        return kept.float()
    if spec.scale == "int8":
        return kept.float() * params["scale2"]
    values = dynamic_tree(kept.device)[kept.flatten().long()]
    second = params["scale2"].repeat_interleave(DOUBLE_BLOCK)[: values.numel()]
    return (values * second + params["scale_offset"]).view(kept.shape)


def rounded(scale: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Scales as they will be after storage, so that codes are chosen for the values that are decoded."""
    return load(store(scale, spec), spec)
