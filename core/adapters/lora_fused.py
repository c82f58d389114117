"""LoRA's forward and backward written out, over the layers that peft made (Hu et al. 2021).

y = x Wᵀ + (x Aᵀ) Bᵀ s with a frozen W needs of every layer only x, and x Aᵀ of rank r, for its gradients. Autograd on
peft's layers also keeps and casts what nobody needs: x in the adapter's dtype, the low-rank product at full width, the
sum before the last cast. Here projections of one input are one function: their down-projections are one product, the
up-projections are added into the base's output where it lies, and the gradient of x gathers in one buffer. The gated
product before a down-projection is made again in the backward pass instead of being kept. W may be dense, or 4-bit,
which is unpacked for each use. A layer that peft computes otherwise (dropout, DoRA, several adapters, merged,
switched off) runs as peft wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from core.models.fused.layer import each_by_itself, gated_then
from core.models.fused.ops import kernels_for


class Low(NamedTuple):
    """The one adapter of a layer. A (r, in) and B (out, r) are parameters; base is the frozen linear map."""

    base: Any
    A: torch.Tensor
    B: torch.Tensor
    scale: float


def low_rank(module: Any) -> Low | None:
    """What trains in a peft LoRA layer, when its forward is the plain formula; else None."""
    base = getattr(module, "base_layer", None)
    if base is None or not hasattr(module, "lora_A") or module.disable_adapters or module.merged:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1 or not _frozen(base) or getattr(module, "fan_in_fan_out", False):
        return None
    name = active[0]
    a, b = module.lora_A[name], module.lora_B[name]
    dropout = module.lora_dropout[name]
    silent = isinstance(dropout, torch.nn.Identity) or not (module.training and dropout.p)
    if not silent or name in getattr(module, "lora_variant", {}) or b.bias is not None:
        return None
    if base._forward_hooks or base._forward_pre_hooks or module._forward_hooks or module._forward_pre_hooks:
        return None
    return Low(base, a.weight, b.weight, float(module.scaling[name]))


def _frozen(base: Any) -> bool:
    known = type(base) is torch.nn.Linear or _four_bit(base)
    return known and not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)


def _four_bit(base: Any) -> bool:
    """A 4-bit layer in its usual layout; bitsandbytes lays it out anew for inference on some CPUs."""
    state = getattr(base.weight, "quant_state", None)
    return type(base).__name__ == "Linear4bit" and not getattr(state, "packing_format_for_cpu", False)


def project(x: torch.Tensor, modules: Sequence[Any]) -> list[torch.Tensor]:
    """Each module's output on x (…, in); fused when all of them are plain LoRA layers."""
    found = [low_rank(module) for module in modules]
    if any(low is None for low in found):
        return each_by_itself(x, modules)
    lows = [low for low in found if low is not None]
    factors = [t for low in lows for t in (low.A, low.B)]
    return list(_Project.apply(x, _compute_dtype(x), [(low.base, low.scale) for low in lows], *factors))


def gated_project(gate: torch.Tensor, up: torch.Tensor, module: Any) -> torch.Tensor:
    """module(silu(gate) · up), the product made again in the backward pass when the module is a plain LoRA layer."""
    low = low_rank(module)
    if low is None:
        return gated_then(gate, up, module)
    return _GatedProject.apply(gate, up, _compute_dtype(up), low.base, low.scale, low.A, low.B)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def dense(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """W (out, in) in `dtype`; a 4-bit weight is unpacked into a new tensor."""
    if type(base).__name__ != "Linear4bit":
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state).to(dtype)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, dtype, bases, *factors):  # type: ignore[override]
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            stacked = torch.cat([a.to(dtype) for a in factors[::2]])
            small = flat @ stacked.T
            outs = []
            for (base, scale), b, part in zip(bases, factors[1::2], small.split([len(a) for a in factors[::2]], 1)):
                outs.append(_add_low(_base(base, flat, dtype), part, b, scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(flat, small, *factors)
        ctx.dtype, ctx.bases, ctx.shape, ctx.given = dtype, bases, x.shape, x.dtype
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads):  # type: ignore[override]
        flat, small, *factors = ctx.saved_tensors
        ranks = [len(a) for a in factors[::2]]
        d_small = torch.empty_like(small)
        found: list[torch.Tensor | None] = []
        flats = [grad.reshape(len(flat), -1).to(ctx.dtype) for grad in grads]
        for (_, scale), b, g, part, into in zip(
            ctx.bases, factors[1::2], flats, small.split(ranks, 1), d_small.split(ranks, 1)
        ):
            torch.mm(g, b.to(ctx.dtype) * scale, out=into)
            found += [None, (g.T @ part).to(b.dtype).mul_(scale)]
        for number, d_a in enumerate((d_small.T @ flat).split(ranks)):
            found[2 * number] = d_a.to(factors[2 * number].dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            stacked = torch.cat([a.to(ctx.dtype) for a in factors[::2]])
            dx = d_small @ stacked
            for (base, _), g in zip(ctx.bases, flats):
                dx.addmm_(g, dense(base, ctx.dtype))
            dx = dx.view(ctx.shape).to(ctx.given)
        return dx, None, None, *found


class _GatedProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate, up, dtype, base, scale, a, b):  # type: ignore[override]
        flat_gate, flat_up = (t.reshape(-1, t.shape[-1]).to(dtype).contiguous() for t in (gate, up))
        with torch.autocast(up.device.type, enabled=False):
            product = kernels_for(up).gated(flat_gate, flat_up)
            small = product @ a.to(dtype).T
            out = _add_low(_base(base, product, dtype), small, b, scale)
        ctx.save_for_backward(flat_gate, flat_up, small, a, b)
        ctx.dtype, ctx.base, ctx.scale, ctx.given = dtype, base, scale, (gate.dtype, up.dtype)
        return out.view(*up.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[override]
        gate, up, small, a, b = ctx.saved_tensors
        g = grad.reshape(len(up), -1).to(ctx.dtype)
        d_small = g @ (b.to(ctx.dtype) * ctx.scale)
        d_b = (g.T @ small).to(b.dtype).mul_(ctx.scale)
        d_product = d_small @ a.to(ctx.dtype)
        d_product.addmm_(g, dense(ctx.base, ctx.dtype))
        d_gate, d_up, product = kernels_for(up).gated_backward(d_product, gate, up, True)
        d_a = (d_small.T @ product).to(a.dtype)
        shape = (*grad.shape[:-1], -1)
        return d_gate.view(shape).to(ctx.given[0]), d_up.view(shape).to(ctx.given[1]), None, None, None, d_a, d_b


def _base(base: Any, flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bias = None if base.bias is None else base.bias.to(dtype)
    return torch.nn.functional.linear(flat, dense(base, dtype), bias)


def _add_low(out: torch.Tensor, small: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    return out.addmm_(small, b.to(out.dtype).T, alpha=scale)
