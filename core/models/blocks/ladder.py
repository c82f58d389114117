"""Sub-layers that do not wait for one another (Zhang et al. 2025, Ladder Residual).

A standard sub-layer reads the stream that its predecessor has just written, x[i+1] = x[i] + f_i(x[i]); a ladder
sub-layer reads the one before, x[i+1] = x[i] + f_i(x[i-1]). Under tensor parallelism the predecessor's all-reduce can
then run while this sub-layer computes. The weights are the same, what they see is not: a converted model is retrained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from core.errors import ConfigError, UnsupportedError
from core.models.blocks.compound import Compound
from core.models.surgery import layer_index
from core.models.topology import BlockRef, ModelTopology

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class LadderRun(Compound):
    """Consecutive ladder blocks, run as one.

    Args:
        blocks: the blocks; the first is a standard one when `lead` is set, which gives the first ladder sub-layer the
            stream between that block's attention and its feed-forward part.

    Attributes:
        start: under tensor parallelism, begins the sum of a sub-layer's output over the processes and gives an object
            whose `wait` gives that sum; the next sub-layer runs in between.
    """

    def __init__(self, blocks: Sequence[nn.Module], lead: bool) -> None:
        super().__init__()
        self.blocks, self.lead = nn.ModuleList(blocks), lead
        self.gradient_checkpointing = False
        self.start: Callable[[torch.Tensor], Any] | None = None

    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """The blocks in order."""
        for number, block in enumerate(self.blocks):
            yield "lead" if self.lead and not number else "ladder", block

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.start is not None:
            return self._overlapped(self.start, hidden_states, args, kwargs)
        stale = stream = hidden_states
        for number, block in enumerate(self.blocks):
            step = _standard if self.lead and not number else _ladder
            if self.gradient_checkpointing and self.training:
                stale, stream = self._gradient_checkpointing_func(step, block, stale, stream, args, kwargs)
            else:
                stale, stream = step(block, stale, stream, args, kwargs)
        return stream

    def _overlapped(self, start: Any, stream: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """The same with sums that are waited for as late as the ladder allows."""
        if self.gradient_checkpointing and self.training:
            raise UnsupportedError("a recomputed ladder would sum its outputs again", where="activation_checkpoint")
        attended = fed = None
        for number, block in enumerate(self.blocks):
            stream = stream if attended is None else stream + attended.wait()
            attended = start(_attend(block, stream, args, kwargs))
            stream = stream if fed is None else stream + fed.wait()
            if self.lead and not number:
                stream, attended = stream + attended.wait(), None
            fed = start(_feed(block, stream))
        stream = stream if attended is None else stream + attended.wait()
        return stream if fed is None else stream + fed.wait()


def _attend(block: nn.Module, x: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    return block.self_attn(block.input_layernorm(x), *args, **kwargs)[0]


def _feed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return block.mlp(block.post_attention_layernorm(x))


def _standard(block: nn.Module, stale: torch.Tensor, stream: torch.Tensor, args: Any, kwargs: Any) -> tuple:
    middle = stream + _attend(block, stream, args, kwargs)
    return middle, middle + _feed(block, middle)


def _ladder(block: nn.Module, stale: torch.Tensor, stream: torch.Tensor, args: Any, kwargs: Any) -> tuple:
    attended = _attend(block, stale, args, kwargs)
    fed = _feed(block, stream)
    middle = stream + attended
    return middle, middle + fed


def ladder(model: Any, layers: Sequence[int]) -> None:
    """Turn the blocks at these positions into ladder blocks; an empty list changes nothing."""
    topology = ModelTopology.of(model)
    stack = topology.stack
    chosen = sorted({layer_index(model, layer, "ladder") for layer in layers})
    if topology.family not in FAMILIES:
        raise UnsupportedError(
            f"a {topology.family} block has no stream between norms before its sub-layers",
            where="ladder",
            hint=f"known: {', '.join(FAMILIES)}",
        )
    runs: list[tuple[int, int]] = []
    for layer in chosen:
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    for start, end in runs:
        for position in range(max(0, start - 1), end):
            if hasattr(stack[position], "branches") or not _plain(topology, stack[position]):
                raise ConfigError(
                    f"block {position} is edited already ({type(stack[position]).__name__})",
                    where="ladder",
                    hint="a ladder needs plain blocks, and one before it",
                )
    if any(end == start for (_, end), (start, _) in zip(runs, runs[1:])):
        raise ConfigError("two ladders touch", where="ladder")
    for start, end in reversed(runs):
        lead = start > 0
        first = start - 1 if lead else start
        run = LadderRun([stack[position] for position in range(first, end)], lead)
        stack[first] = run
        for position in range(end - 1, first, -1):
            del stack[position]


def _plain(topology: ModelTopology, outer: nn.Module) -> BlockRef | None:
    return next((block for block in topology.blocks if block.module is outer and hasattr(outer, "self_attn")), None)
