"""Loss and gradient of a piece of logits, in one kernel: two passes over a row, the second of which hits the cache."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _softmax_loss(
    raw, targets, losses, stride, V,
    scale, cap, smoothing,
    CAPPED: tl.constexpr, DIFFERENTIATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    line = raw + row * stride
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    top = -float("inf")
    mass = 0.0
    summed = 0.0
    own = 0.0
    for start in range(0, V, BLOCK):
        at = start + columns
        z = tl.load(line + at, mask=at < V, other=0.0).to(tl.float32) * scale
        if CAPPED:
            z = cap * (2 / (1 + tl.exp(-2 * z / cap)) - 1)
        summed += tl.sum(tl.where(at < V, z, 0.0))
        own += tl.sum(tl.where(at == target, z, 0.0))
        z = tl.where(at < V, z, -float("inf"))
        high = tl.maximum(top, tl.max(z))
        mass = mass * tl.exp(top - high) + tl.sum(tl.exp(z - high))
        top = high
    lse = top + tl.log(mass)
    kept = target >= 0
    tl.store(losses + row, tl.where(kept, lse - (1 - smoothing) * own - smoothing * summed / V, 0.0))
    if DIFFERENTIATE:
        for start in range(0, V, BLOCK):
            at = start + columns
            z = tl.load(line + at, mask=at < V, other=0.0).to(tl.float32) * scale
            bend = 1.0
            if CAPPED:
                bent = 2 / (1 + tl.exp(-2 * z / cap)) - 1
                z = cap * bent
                bend = 1 - bent * bent
            grad = tl.exp(z - lse) - smoothing / V - tl.where(at == target, 1 - smoothing, 0.0)
            grad = tl.where(kept, grad * bend * scale, 0.0)
            tl.store(line + at, grad.to(raw.dtype.element_ty), mask=at < V)


def softmax_loss_(raw_NV: torch.Tensor, targets_N: torch.Tensor, shape: Any, differentiate: bool) -> torch.Tensor:
    """Summed loss of raw logits (N, V), which become the loss's gradient when `differentiate`."""
    losses = torch.empty(len(raw_NV), dtype=torch.float32, device=raw_NV.device)
    block = min(8192, triton.next_power_of_2(raw_NV.shape[1]))
    if len(raw_NV):
        _softmax_loss[(len(raw_NV),)](
            raw_NV, targets_N, losses, raw_NV.stride(0), raw_NV.shape[1],
            shape.scale, shape.softcap or 1.0, shape.smoothing,
            CAPPED=shape.softcap is not None, DIFFERENTIATE=differentiate, BLOCK=block, num_warps=16,
        )  # fmt: skip
    return losses.sum()
