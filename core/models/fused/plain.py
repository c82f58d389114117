"""The same arithmetic as the kernels of a gated transformer block, in PyTorch: their twins, and what a CPU runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def norm_forward(x, added, weight, eps: float, dtype: torch.dtype):
    """RMSNorm (Zhang & Sennrich 2019) of s = x + added, rounded where transformers rounds.

    Args:
        x, added: (N, D); added may be None. weight: (D,). dtype: of the result.

    Returns:
        the normed (N, D), s in the promoted dtype, and 1 / rms (N,) in fp32.
    """
    summed = x if added is None else x + added
    exact = summed.float()
    inverse = torch.rsqrt(exact.square().mean(-1) + eps)
    unit = (exact * inverse[:, None]).to(summed.dtype)
    return (unit.float() * weight.float()).to(dtype), summed, inverse


def norm_backward(grad, passed, x, weight, inverse, with_gain: bool):
    """Gradient of s, `passed` (the gradient that reaches s by its own way) included, and that of the weight in fp32."""
    unit = x.float() * inverse[:, None]
    dy = grad.float()
    gains = (dy * unit).sum(0) if with_gain else None
    dy = dy * weight.float()
    dx = inverse[:, None] * (dy - unit * (dy * unit).mean(-1, keepdim=True))
    dx = dx if passed is None else dx + passed.float()
    return dx.to(x.dtype), gains


def rotate(x, cos, sin, sign: float):
    """Rotary phases (Su et al. 2021) on x (B, T, H, d), halves paired; sign -1 turns back.

    Args:
        cos, sin: (B or 1, T, d), of which the second half repeats the first.
    """
    half = x.shape[-1] // 2
    c, s = cos[..., None, :half].float(), sin[..., None, :half].float() * sign
    one, two = x[..., :half].float(), x[..., half:].float()
    return torch.cat([one * c - two * s, two * c + one * s], -1).to(x.dtype)


def gated(gate, up):
    """silu(gate) · up (Shazeer 2020), silu rounded first, as transformers does."""
    return F.silu(gate.float()).to(up.dtype) * up


def gated_backward(grad, gate, up, keep: bool):
    """Gradients of gate and up; when `keep`, the product itself once more, which may lie where `grad` was."""
    dy, g = grad.float(), gate.float()
    bell = torch.sigmoid(g)
    silu = (g * bell).to(up.dtype)
    slope = bell * (1 + g * (1 - bell))
    d_up = (dy * silu.float()).to(up.dtype)
    return (dy * up.float() * slope).to(gate.dtype), d_up, silu * up if keep else None
