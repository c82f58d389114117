"""Cross-entropy straight from hidden states: the logits of all tokens never exist at one time.

A vocabulary of 128k makes the logits of 8,192 tokens 2 GiB, in fp32 four, and their gradient as much again. Here the
head is multiplied in pieces of tokens; each piece's logits turn into their own gradient in place, and that into the
gradients of hidden states and head, all in the forward pass. The backward pass only scales them (the chunked loss of
Cut Cross-Entropy, Wijmans et al. 2024, and of Liger-Kernel, Hsu et al. 2024, without their filters: it is exact).
Logits are multiplied in the hidden states' dtype, under autocast in its dtype, and reduced in fp32. On a GPU one Triton
kernel makes loss and gradient of a piece; elsewhere its plain twin does. It knows no model: whoever calls it brings
states, weight, targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

PIECE_BYTES = {"cuda": 512 * 2**20, "cpu": 32 * 2**20}


@dataclass(frozen=True)
class HeadShape:
    """What a model does with its logits z = W h + b before the softmax, and what the loss adds.

    Args:
        scale: z → scale · z. softcap: z → c · tanh(z / c), after the scale; None leaves z as it is.
        smoothing: share of the target's mass spread evenly over the vocabulary.
        z_loss: weight of log² Z, Z = Σ exp z, which keeps logits from drifting off (Chowdhery et al. 2022, PaLM).
    """

    scale: float = 1.0
    softcap: float | None = None
    smoothing: float = 0.0
    z_loss: float = 0.0

    def of(self, raw: torch.Tensor) -> torch.Tensor:
        """The logits that the softmax sees."""
        z = raw if self.scale == 1.0 else raw * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def linear_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    shape: HeadShape | None = None,
    piece: int | None = None,
) -> torch.Tensor:
    """Summed cross-entropy of N tokens, fp32, with exact gradients for states, weight and bias.

    Legend: N tokens, D width, V vocabulary.

    Args:
        targets_N: ids; a negative one carries no loss and no gradient.
        piece: tokens whose logits exist at one time; None bounds them to 512 MiB on a GPU, 32 MiB on a CPU.
    """
    kind = hidden_ND.device.type
    if torch.is_autocast_enabled(kind):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(kind))  # the residual stream of fp32 parameters is fp32
    if piece is None:
        room = PIECE_BYTES["cuda" if hidden_ND.is_cuda else "cpu"]
        piece = max(64, room // (weight_VD.shape[0] * hidden_ND.element_size()) // 64 * 64)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, shape or HeadShape(), piece)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, shape, piece):  # type: ignore[override]
        wants = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            dense = weight.to(hidden.dtype)
            grad_hidden = torch.empty_like(hidden) if wants[0] else None
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None
            grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants[2] else None
            total = hidden.new_zeros((), dtype=torch.float32)
            for start in range(0, len(targets), piece):
                part = slice(start, start + piece)
                logits = torch.nn.functional.linear(hidden[part], dense, None if bias is None else bias.to(dense.dtype))
                total = total + softmax_loss_(logits, targets[part], shape, any(wants))
                if grad_hidden is not None:
                    torch.mm(logits, dense, out=grad_hidden[part])
                if grad_weight is not None:
                    _add_outer(grad_weight, logits, hidden[part])
                if grad_bias is not None:
                    grad_bias += logits.sum(0, dtype=torch.float32)
                del logits
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total):  # type: ignore[override]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scaled = [
            None if g is None else (g * grad_total.to(g.dtype)).to(dtype)
            for g, dtype in ((grad_weight, ctx.dtypes[0]), (grad_bias, ctx.dtypes[1]))
        ]
        states = None if grad_hidden is None else grad_hidden * grad_total.to(torch.float32)
        states = None if states is None else states.to(grad_hidden.dtype)
        return states, scaled[0], scaled[1], None, None, None


def _add_outer(total: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """total (V, D) += logitsᵀ hidden, summed in fp32 also when the factors are not."""
    if hidden.dtype == total.dtype:
        total.addmm_(logits.T, hidden)
    else:
        total += logits.T @ hidden


def softmax_loss_(raw_NV: torch.Tensor, targets_N: torch.Tensor, shape: HeadShape, differentiate: bool) -> torch.Tensor:
    """Summed loss of raw logits, which are overwritten by the loss's gradient when `differentiate`."""
    from core.models.fused.backend import runs_triton

    if runs_triton(raw_NV) and not shape.z_loss:  # the kernel has no such term
        from core.models.fused.triton_cross_entropy import softmax_loss_

        return softmax_loss_(raw_NV, targets_N, shape, differentiate)
    return plain_softmax_loss_(raw_NV, targets_N, shape, differentiate)


def plain_softmax_loss_(
    raw_NV: torch.Tensor, targets_N: torch.Tensor, shape: HeadShape, differentiate: bool
) -> torch.Tensor:
    """As `softmax_loss_`, in PyTorch: the kernel's twin."""
    kept = targets_N >= 0
    index = targets_N.clamp(min=0)[:, None]
    z = shape.of(raw_NV.float())
    lse = torch.logsumexp(z, -1)
    own = (1 - shape.smoothing) * z.gather(1, index)[:, 0]
    even = shape.smoothing * z.mean(-1) if shape.smoothing else 0.0
    drift = shape.z_loss * lse.square() if shape.z_loss else 0.0
    total = torch.where(kept, lse - own - even + drift, 0.0).sum()
    if differentiate:
        bend = None if shape.softcap is None else 1 - (z / shape.softcap).square()
        grad = z.sub_(lse[:, None]).exp_() if bend is not None or z is not raw_NV else (z - lse[:, None]).exp_()
        if shape.z_loss:
            grad *= 1 + 2 * shape.z_loss * lse[:, None]
        if shape.smoothing:
            grad -= shape.smoothing / raw_NV.shape[1]
        grad.scatter_add_(1, index, grad.new_full((len(index), 1), shape.smoothing - 1))
        if bend is not None:
            grad *= bend
        if shape.scale != 1.0:
            grad *= shape.scale
        grad *= kept[:, None]
        raw_NV.copy_(grad)
    return total
