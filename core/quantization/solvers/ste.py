"""Ternary weights trained with the straight-through estimator, and what packs them afterwards.

γ = mean|W| and Ŵ = γ · round(clip(W/γ, −1, 1)): TriLM (Kaushal et al. 2024) uses Ŵ alone, BitLinear (Wang et al. 2023;
Zhu et al. 2024) also normalises its input and rounds it to int8 for each token. The backward takes the gradient of Ŵ
for that of W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.quantization import scales
from core.quantization.solvers.encoded import Encoded
from core.quantization.spec import QuantSpec

EPS, NORM_EPS = 1e-5, 1e-8


def ternary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in {−1, 0, 1} as floats, and γ (1,), of the whole matrix."""
    gamma = weight.float().abs().mean().clamp_min(EPS)
    return (weight.float() / gamma).round().clamp(-1, 1), gamma


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Ternary codes. A matrix that is ternary already, also in several row blocks of one scale each, keeps its values.

    Raises:
        ConfigError: several scales where the spec holds one.
    """
    codes, gamma = ternary(weight)
    magnitudes = weight.float().abs().unique()
    magnitudes = magnitudes[magnitudes > 0]
    if magnitudes.numel() == 1:
        # already ternary: its one magnitude is the scale, whatever the share of zeros
        codes, gamma = weight.float().sign(), magnitudes[0]
    return Encoded((codes + 1).to(torch.uint8), scales.store(gamma.view(1, 1), spec))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        codes, gamma = ternary(weight)
        return (codes * gamma).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad


class TernaryLinear(nn.Linear):
    """A linear map that trains a latent weight and multiplies with its ternary rounding.

    Args:
        norm: RMS-normalise the input first, without a gain. act: "int8" rounds the input for each token.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, quant: QuantSpec, **where: Any):
        super().__init__(in_features, out_features, bias, **where)
        self.quant = quant
        self.extra: dict[str, Any] = {"latent": True, **({"norm": True} if quant.act == "int8" else {})}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.quant.act == "int8":
            x = rounded_per_token(normalised(x))
        return F.linear(x, _StraightThrough.apply(self.weight), self.bias)

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Ŵ (out, in), which the forward multiplies with."""
        weight = _StraightThrough.apply(self.weight)
        return weight if dtype is None else weight.to(dtype)

    def set_dense_weight(self, weight: torch.Tensor) -> None:
        """Take W as the latent weight."""
        with torch.no_grad():
            self.weight.copy_(weight)

    @property
    def spec(self) -> str:
        return str(self.quant)

    def storage_bytes(self) -> int:
        """Bytes of the latent weight."""
        return self.weight.numel() * self.weight.element_size()


def normalised(x: torch.Tensor) -> torch.Tensor:
    """x / rms(x) over the last dimension, in fp32 and back."""
    values = x.float()
    return (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


def rounded_per_token(x: torch.Tensor) -> torch.Tensor:
    """x rounded to int8 with one scale for each token, with the gradient of the identity."""
    step = 127.0 / x.detach().float().abs().amax(-1, keepdim=True).clamp_min(EPS)
    rounded = ((x.detach().float() * step).round().clamp(-128, 127) / step).to(x.dtype)
    return x + (rounded - x).detach()


def make_trainable(model: Any, spec: QuantSpec, skip: Any = ()) -> Any:
    """`model` with a `TernaryLinear` in place of every linear map but the head; the weights become the latent ones."""
    from core.quantization.quantize import find_targets

    for name, part in find_targets(model, skip).items():
        bias = part.bias is not None
        made = TernaryLinear(
            part.in_features, part.out_features, bias, quant=spec, device=part.weight.device, dtype=part.weight.dtype
        )
        made.weight, made.bias = part.weight, part.bias
        model.set_submodule(name, made)
    return model


def pack(model: Any) -> Any:
    """`model` with packed ternary layers in place of those that train; the function is the same."""
    from core.quantization.linear import QuantizedLinear

    for name, part in list(model.named_modules()):
        if isinstance(part, TernaryLinear):
            with torch.no_grad():
                codes, gamma = ternary(part.weight)
                encoded = Encoded((codes + 1).to(torch.uint8), scales.store(gamma.view(1, 1), part.quant))
                made = QuantizedLinear.from_encoded(encoded, part.quant, part.bias, norm=part.quant.act == "int8")
            model.set_submodule(name, made)
    return model
