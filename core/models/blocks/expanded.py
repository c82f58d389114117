"""Blocks whose tensors are points on one line: θ_B + (l/L) θ_A, shared by all blocks of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from core.errors import ConfigError
from core.models.blocks.compound import Compound
from core.models.topology import ModelTopology


class Pair(nn.Module):
    """θ_A and θ_B of every tensor of a block. Names have their dots replaced, as parameters cannot hold any."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in block.named_parameters()]
        self.a, self.b = (
            nn.ParameterDict({_key(name): nn.Parameter(torch.empty_like(p)) for name, p in block.named_parameters()})
            for _ in range(2)
        )

    def at(self, place: float) -> dict[str, torch.Tensor]:
        """The tensors of a block at l/L = `place`."""
        return {name: torch.add(self.b[_key(name)], self.a[_key(name)], alpha=place) for name in self.names}

    @torch.no_grad()
    def load(self, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
        """Take over values by the block's own names."""
        for name in self.names:
            self.a[_key(name)].copy_(a[name])
            self.b[_key(name)].copy_(b[name])

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Copies of θ_A and θ_B by the block's own names."""
        return tuple({name: part[_key(name)].detach().clone() for name in self.names} for part in (self.a, self.b))


def _key(name: str) -> str:
    return name.replace(".", "__")


class ExpandedBlock(Compound):
    """A block without parameters of its own: those of the pair at its place are built when it runs.

    While training they are built again in the backward pass, so that the tensors of one block exist at a time; their
    gradients add up in θ_B, and times l/L in θ_A.
    """

    def __init__(self, block: nn.Module, pair: Pair, place: float, holds: bool) -> None:
        super().__init__()
        self.place, self._pair = place, [pair]
        # one block of the stack holds the pair as its child, so that it is saved once
        if holds:
            self.pair = pair
        # not a child: its parameters are shapes only and must not be saved, moved or trained
        self._skeleton = [copy.deepcopy(block).to("meta")]

    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """The block without values."""
        yield "expanded", self._skeleton[0]

    def train(self, mode: bool = True) -> ExpandedBlock:
        self._skeleton[0].train(mode)
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            return checkpoint(self._run, *args, use_reentrant=False, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._skeleton[0], self._pair[0].at(self.place), args, kwargs)


def learngene(model: Any, depth: int) -> None:
    """Replace the stack by `depth` blocks built from one pair, which holds no values yet."""
    if not isinstance(depth, int) or depth < 1:
        raise ConfigError(f"a model of {depth} blocks", where="learngene", hint="at least 1")
    stack = ModelTopology.of(model).stack
    first = stack[0]
    if any(block.state_dict().keys() != first.state_dict().keys() for block in stack) or hasattr(first, "branches"):
        raise ConfigError("the blocks differ from each other", where="learngene")
    if list(first.buffers()):
        raise ConfigError("a block with buffers cannot be built from a pair", where="learngene")
    pair = Pair(first)
    made = [ExpandedBlock(first, pair, number / depth, not number) for number in range(depth)]
    del stack[:]
    stack.extend(made)
