"""Tensor parallelism in which a ladder block's reduction runs beside the next sub-layer (Zhang et al. 2025).

Heads and feed-forward channels are split over the processes of a group (Shoeybi et al. 2019): a process holds the rows
of q, k, v, gate and up and the columns of o and down that are its own, and a sub-layer's output is the sum over the
processes. A standard block waits for that sum before its next sub-layer; a ladder block starts it, runs the next
sub-layer on the stream as it was before, and only then waits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from core.errors import ConfigError, UnsupportedError
from core.models.blocks.ladder import FAMILIES, LadderRun
from core.models.blocks.linears import put
from core.models.linear import dense_weight
from core.models.topology import ModelTopology


class LadderTP:
    """Splits a model over the processes of `group`; every process gives the model with all of its weights.

    Args:
        group: of torch.distributed; None is all processes, and without processes nothing is split.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        ready = dist.is_available() and dist.is_initialized()
        self.size, self.rank = (dist.get_world_size(group), dist.get_rank(group)) if ready else (1, 0)

    def apply(self, model: Any) -> Any:
        """Split `model` in place and return it; it computes what it did, on every process.

        Raises:
            UnsupportedError: another family, or maps that are not plain.
            ConfigError: heads or channels that do not divide by the processes.
        """
        topology = ModelTopology.of(model)
        self._check(topology)
        runs = [part for part in topology.stack if isinstance(part, LadderRun)]
        inside = {id(block) for run in runs for _, block in run.branches()}
        for ref in topology.blocks:
            if self.size > 1:
                for part in (ref.q, ref.k, ref.v, ref.gate, ref.up):
                    put(ref.module, part, self._rows(part))
                for norm in ref.norms:
                    norm.register_forward_hook(lambda _m, _i, out: Enter.apply(out, self.group))
                outer = [self._columns(part) for part in (ref.o, ref.down)]
                for old, new in zip((ref.o, ref.down), outer):
                    put(ref.module, old, new)
                    if id(ref.module) not in inside:
                        new.register_forward_hook(lambda _m, _i, out: self.start(out).wait())
        for run in runs:
            run.start = self.start
        return model

    def start(self, partial: torch.Tensor) -> Pending:
        """Begin to sum a sub-layer's output over the processes."""
        if self.size == 1:
            return Pending(partial, None)
        works: list[Any] = []
        return Pending(Leave.apply(partial, self.group, works), works[0])

    def _check(self, topology: ModelTopology) -> None:
        if topology.family not in FAMILIES:
            raise UnsupportedError(
                f"a {topology.family} model is not split", where="LadderTP", hint=f"known: {', '.join(FAMILIES)}"
            )
        for ref in topology.blocks:
            strange = next((part for part in ref.linears().values() if type(part) is not nn.Linear), None)
            if strange is not None:
                raise UnsupportedError(
                    f"a {type(strange).__name__} is not split", where=topology.name_of(strange),
                    hint="merge adapters and split before quantizing",
                )  # fmt: skip
            for what, count in (("key-value heads", ref.n_kv_heads), ("channels", ref.up.out_features)):
                if count % self.size:
                    raise ConfigError(f"{count} {what} for {self.size} processes", where=topology.name_of(ref.module))

    def _rows(self, part: nn.Linear) -> nn.Linear:
        weight = dense_weight(part).chunk(self.size)[self.rank]
        return _linear(weight, None if part.bias is None else part.bias.chunk(self.size)[self.rank])

    def _columns(self, part: nn.Linear) -> nn.Linear:
        # the bias is added once, by the process that holds it
        bias = part.bias if self.rank == 0 else None
        return _linear(dense_weight(part).chunk(self.size, 1)[self.rank], bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(
        weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype
    )  # fmt: skip
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made.requires_grad_(weight.requires_grad)


class Pending:
    """A sum over processes that may still be on its way."""

    def __init__(self, tensor: torch.Tensor, work: Any) -> None:
        self._tensor, self._work = tensor, work

    def wait(self) -> torch.Tensor:
        """The sum."""
        if self._work is not None:
            self._work.wait()
        return self._tensor


class Enter(torch.autograd.Function):
    """The input of split maps: itself forward, the sum of the processes' gradients backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        summed = upstream[0].contiguous().clone()
        dist.all_reduce(summed, group=ctx.group)
        return summed, None


class Leave(torch.autograd.Function):
    """The output of split maps: the sum over the processes forward, begun and not waited for; itself backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any, works: list[Any]) -> torch.Tensor:
        summed = x.contiguous().clone()
        works.append(dist.all_reduce(summed, group=group, async_op=True))
        return summed

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return upstream[0], None, None
