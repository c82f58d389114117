"""ABQ: learn scales, clipping and a rank-1 correction of one block by gradient (Zeng et al. 2024).

The block with rounded weights and activations is brought close to the full-precision block: mean squared error and
cosine of its output against the full-precision stream and against the full-precision block on the same input, and the
symmetric divergence of attention maps. Rounding is straight-through. What is learned is then folded into producers and
ranges, so the result is an ordinary quantized block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from core.models.linear import dense_weight
from core.quantization.grids import highest_code
from core.quantization.solvers import rtn
from core.quantization.solvers.encoded import Encoded
from core.quantization.spec import QuantSpec
from core.quantization.transforms import smooth_scale

FIRST, LAST = 3, 4
OPEN = 4.0


@dataclass
class Learning:
    """How a block is learned. epochs: passes over the batches; 0 keeps the start, SmoothQuant's scale at α = 0.5."""

    epochs: int = 20
    scale_lr: float = 5e-3
    clip_lr: float = 1e-2
    rank_lr: float = 1e-2
    attention: bool = True
    seed: int = 0


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Codes with the ranges that `reconstruct` learned."""
    return rtn.solve(weight, spec, stats)


def reconstruct(step: Any, learning: Learning) -> None:
    """Learn the block of a `blocks._BlockStep` and fold what was learned, in place.

    Leaves clip shares in `step.clip`, input scales that nobody absorbs in `step.in_scale`, and the loss of every epoch
    in `step.notes`.
    """
    run = step.run
    peaks = run.collect(("absmax",), step.here)
    block = _LearnedBlock(step, peaks)
    with torch.no_grad():
        full = run.outputs("full")
        same = run.outputs("edited")
    losses: list[float] = []
    attention = learning.attention and getattr(run.ref.attn, "config", None) is not None
    with torch.enable_grad():
        optimizer = torch.optim.AdamW(block.groups_of_rates(learning), weight_decay=0.0)
        for _ in range(learning.epochs):
            total = 0.0
            for batch, hidden in enumerate(run.edited):
                maps = _maps(run, hidden, batch) if attention else None
                y, own = block.forward(hidden, batch, attention)
                loss = _distance(y, full[batch]) + _distance(y, same[batch])
                if maps is not None and own is not None:
                    loss = loss + _divergence(own, maps)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
            losses.append(total / len(run.edited))
    block.fold()
    step.notes.setdefault(next(iter(step.here)), {})["block loss"] = [round(value, 6) for value in losses]


class _LearnedBlock:
    """The block with its learnable parts: log scales of inputs, logits of clip shares, rank-1 corrections."""

    def __init__(self, step: Any, peaks: dict[str, Any]) -> None:
        self.step, self.run = step, step.run
        self.names = list(step.here)
        self.groups = step.groups
        prefix = len(self.run.name) + 1
        self.local = {name: f"{name[prefix:]}.weight" for name in self.names}
        self.log_scale = [
            smooth_scale(peaks[group.names[0]].absmax, group.maps, 0.5).log().requires_grad_() for group in self.groups
        ]
        self.owner = {name: number for number, group in enumerate(self.groups) for name in group.names}
        self.clip: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rank: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        edge = self.run.index < FIRST or self.run.index > step.last - LAST
        for name in self.names:
            weight = dense_weight(step.here[name])
            spec = step.specs[name].fitted(weight.shape[1])
            shape = rtn.grouped(weight, spec).shape[:2]
            low, high = (torch.full(shape, OPEN, device=weight.device, requires_grad=True) for _ in range(2))
            self.clip[name] = (low, high)
            if edge and self.run.ref.down is step.here[name]:
                self.rank[name] = (
                    torch.zeros(weight.shape[0], device=weight.device, requires_grad=True),
                    torch.ones(weight.shape[1], device=weight.device, requires_grad=True),
                )

    def groups_of_rates(self, learning: Learning) -> list[dict[str, Any]]:
        return [
            {"params": self.log_scale, "lr": learning.scale_lr},
            {"params": [t for pair in self.clip.values() for t in pair], "lr": learning.clip_lr},
            {"params": [t for pair in self.rank.values() for t in pair], "lr": learning.rank_lr},
        ]

    def scale_of(self, name: str) -> torch.Tensor | None:
        number = self.owner.get(name)
        return None if number is None else self.groups[number].shareable(self.log_scale[number].exp())

    def weight(self, name: str) -> torch.Tensor:
        """The rounded weight in front of the unscaled input, with gradients to what is learned."""
        weight = dense_weight(self.step.here[name]).detach().float()
        if name in self.rank:
            weight = weight + self.rank[name][0][:, None] * self.rank[name][1]
        scale = self.scale_of(name)
        spec = self.step.specs[name].fitted(weight.shape[1])
        scaled = weight if scale is None else weight * scale
        parts = scaled.unflatten(1, (-1, scaled.shape[1] // max(1, spec.groups(scaled.shape[1]))))
        low, high = (share.sigmoid()[..., None] for share in self.clip[name])
        bottom, top = parts.amin(-1, keepdim=True).clamp_max(0) * low, parts.amax(-1, keepdim=True).clamp_min(0) * high
        codes = highest_code(spec)
        width = ((top - bottom) / codes).clamp_min(1e-8)
        zero = _round(-bottom / width).clamp(0, codes)
        values = ((_round(parts / width) + zero).clamp(0, codes) - zero) * width
        values = values.flatten(1)
        return values if scale is None else values / scale

    def forward(self, hidden: torch.Tensor, batch: int, attention: bool) -> tuple[torch.Tensor, Any]:
        module = self.run.ref.module
        rounds = [
            self.step.here[name].register_forward_pre_hook(self._rounds_inputs(name))
            for name in self.names
            if self.step.specs[name].act == "int8"
        ]
        weights = {}
        for name in self.names:
            value = self.weight(name).to(dense_weight(self.step.here[name]).dtype)
            own = self.step.here[name].weight
            weights[self.local[name]] = value if own.shape == value.shape else value.t()
        positional, named = self.run.arguments[batch]
        observed = _Observed(self.run.ref.attn) if attention else None
        try:
            result = torch.func.functional_call(module, weights, (hidden, *positional), named)
        finally:
            for handle in rounds:
                handle.remove()
            if observed is not None:
                observed.stop()
        y = result[0] if isinstance(result, tuple) else result
        return y, None if observed is None else observed.maps

    def _rounds_inputs(self, name: str) -> Any:
        def hook(module: Any, args: tuple) -> tuple:
            x, scale = args[0], self.scale_of(name)
            inner = x if scale is None else x / scale
            step = (inner.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-8)
            inner = _round(inner / step) * step
            return ((inner if scale is None else inner * scale).to(x.dtype),)

        return hook

    @torch.no_grad()
    def fold(self) -> None:
        for name, (a, b) in self.rank.items():
            weight = dense_weight(self.step.here[name])
            weight.copy_(weight.float() + a[:, None] * b)
        for number, group in enumerate(self.groups):
            left = group.fold(group.shareable(self.log_scale[number].exp()))
            if left is not None:
                self.step.in_scale |= dict.fromkeys(group.names, left)
        for name, (low, high) in self.clip.items():
            self.step.clip[name] = (low.sigmoid(), high.sigmoid())


class _Observed:
    """Computes attention by an own function while it is on, and keeps the maps (B, heads, T, T)."""

    def __init__(self, attn: Any) -> None:
        from transformers import AttentionInterface

        self.config, self.maps = attn.config, None
        AttentionInterface.register("graft_observed", self._attend)
        self.before = self.config._attn_implementation
        self.config._attn_implementation = "graft_observed"

    def _attend(self, module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any = None, **kwargs: Any) -> Any:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if mask is None:
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(ahead, -torch.inf)
        elif mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        else:
            scores = scores + mask
        self.maps = scores.softmax(-1)
        return (self.maps @ v).transpose(1, 2), None

    def stop(self) -> None:
        self.config._attn_implementation = self.before


@torch.no_grad()
def _maps(run: Any, hidden: torch.Tensor, batch: int) -> Any:
    observed = _Observed(run.ref.attn)
    try:
        run.forward(hidden, batch)
    finally:
        observed.stop()
    return observed.maps


def _distance(y: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    cosine = F.cosine_similarity(y.float(), wanted.float(), dim=-1).mean().clamp_min(1e-6)
    return (y.float() - wanted.float()).square().mean() - cosine.log()


def _divergence(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Symmetric Kullback-Leibler divergence of maps, mean over queries."""
    own, wanted = own.float().clamp_min(1e-9), wanted.float().clamp_min(1e-9)
    return ((own - wanted) * (own.log() - wanted.log())).sum(-1).mean()


def _round(x: torch.Tensor) -> torch.Tensor:
    """Rounding with the gradient of the identity."""
    return x + (x.round() - x).detach()
