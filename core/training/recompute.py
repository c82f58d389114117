"""Blocks that are computed again in the backward pass, their inputs waiting in host memory.

Recomputation (Chen et al. 2016) keeps one input a block; for long contexts these are most of what is left. On a GPU
they go to pinned host memory on a stream of their own while the block computes, and the input of the block before comes
back while the next one is computed again. Elsewhere they stay where they are. Values are those of the plain pass, bit
for bit: random states and autocast are restored for the second computation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Waiting:
    """One block's input (…): on its way to the host, there, or on its way back. `before` is the earlier block's."""

    def __init__(self, hidden: torch.Tensor, road: Any, before: Waiting | None) -> None:
        self.road, self.before = road, before
        self.back: Any = None
        if road is None:
            self.kept = hidden
            return
        road.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(road):
            self.kept = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True)
            self.kept.copy_(hidden, non_blocking=True)
            self.there = road.record_event()
        hidden.record_stream(road)

    def start_back(self, device: Any) -> None:
        """Let the copy to the device begin."""
        if self.road is None or self.back is not None:
            return
        with torch.cuda.stream(self.road):
            self.back = torch.empty(self.kept.shape, dtype=self.kept.dtype, device=device)
            self.back.copy_(self.kept, non_blocking=True)
            self.arrived = self.road.record_event()

    def take(self, device: Any) -> torch.Tensor:
        """The input on the device, for the current stream; the one before starts its way."""
        self.start_back(device)
        if self.before is not None:
            self.before.start_back(device)
        if self.back is None:
            return self.kept
        now = torch.cuda.current_stream()
        now.wait_event(self.arrived)
        back, self.back = self.back, None  # this object lives as long as the graph, to the end of the backward pass
        back.record_stream(now)
        return back


class Recomputed:
    """What transformers calls for a block that is to be checkpointed: `(function, hidden, …) -> output`.

    Args:
        random: whether a block draws random numbers, whose states must then be restored.
    """

    def __init__(self, device: Any, random: bool) -> None:
        self.road = torch.cuda.Stream() if device.type == "cuda" else None
        self.random = random
        self.last: Waiting | None = None

    def __call__(self, function: Callable[..., Any], hidden: torch.Tensor, *rest: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(hidden, *rest)
        # blocks over frozen embeddings have an input without a gradient, and parameters with one
        alive = torch.empty(0, device=hidden.device, requires_grad=True)
        return _Recompute.apply(lambda x: function(x, *rest), self, hidden, alive)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function, owner, hidden, alive):  # type: ignore[override]
        kind = hidden.device.type
        ctx.function, ctx.owner, ctx.device = function, owner, hidden.device
        ctx.autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        ctx.states = _random_states(hidden.device) if owner.random else None
        out = function(hidden)
        ctx.waiting = owner.last = Waiting(hidden.detach(), owner.road, owner.last)
        ctx.needs = hidden.requires_grad
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[override]
        owner = ctx.owner
        hidden = ctx.waiting.take(ctx.device).detach().requires_grad_(ctx.needs)
        owner.last = ctx.waiting.before
        ctx.waiting.before = None
        enabled, dtype = ctx.autocast
        now = _random_states(ctx.device) if owner.random else None
        if now is not None:
            _restore(ctx.states, ctx.device)
        with torch.enable_grad(), torch.autocast(ctx.device.type, dtype, enabled=enabled):
            out = ctx.function(hidden)
        if now is not None:
            _restore(now, ctx.device)
        torch.autograd.backward(out, grad)
        return None, None, hidden.grad, None


def _random_states(device: Any) -> tuple[torch.Tensor, Any]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(states: tuple[torch.Tensor, Any], device: Any) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


def recompute_from_host(model: Any, blocks: list[Any], device: Any) -> None:
    """Let `blocks`, which transformers is to checkpoint, keep their inputs in host memory."""
    random = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    random = random or any(getattr(m, "attention_dropout", 0.0) for m in model.modules())
    recomputed = Recomputed(device, random)
    for block in blocks:
        block._gradient_checkpointing_func = recomputed
