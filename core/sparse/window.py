"""The gradients that one matrix shows at promising positions during a few optimizer steps.

The first backward pass chooses the positions: the largest entries of its gradient. Then the gradient of every step is
summed there, with its square: 16 bytes a candidate. Processes watch the same positions, those of the first of them,
and their gradients are averaged before a step is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from core.sparse.support import TopK, bounds


class Window:
    """What one matrix's gradient showed since the window opened.

    Args:
        count: candidates. dtype: of their positions.

    Attributes:
        positions: (count,) sorted, None before the first backward pass. total, squares: (count,) Σ g and Σ g² over
            the optimizer steps counted so far, g the gradient that the optimizer took. steps: how many those are.
    """

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count, self.dtype, self.steps = count, dtype, 0
        self.positions: torch.Tensor | None = None

    def choose(self, tiles: Iterable[tuple[torch.Tensor, int]]) -> None:
        """Take the positions with the largest |dW| over tiles (flat values, position of the first)."""
        best = TopK(self.count)
        for flat, start in tiles:
            best.add(flat.abs(), start=start)
        assert best.positions is not None
        positions = best.positions.sort().values.to(self.dtype)
        if _distributed():
            dist.broadcast(positions, 0)
        self.watch(positions)

    def watch(self, positions: torch.Tensor) -> None:
        """Begin to sum at sorted positions."""
        self.positions = positions
        self.total, self.squares, self.step = (torch.zeros(len(positions), device=positions.device) for _ in range(3))

    def cuts(self, ranges: list[tuple[int, int]], columns: int) -> list[int]:
        """Where the candidates of each range of rows begin, and where the last ones end."""
        assert self.positions is not None
        return bounds(self.positions, ranges, columns)

    def add(self, flat: torch.Tensor, start: int, piece: slice) -> None:
        """Add one micro-batch's gradient at the candidates `piece` of this tile."""
        assert self.positions is not None
        self.step[piece] += flat[(self.positions[piece] - start).long()].float()

    def add_at(self, gradient_at: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add one micro-batch's gradient, given as a function of positions, at all candidates."""
        assert self.positions is not None
        self.step += gradient_at(self.positions)

    def end_step(self, scale: float = 1.0) -> None:
        """Count what the micro-batches of one optimizer step added up to.

        Args:
            scale: factor by which the optimizer's gradient differs from it, as clipping and loss scaling make it; a
                step whose factor is not finite was left out by the optimizer and is here, too.
        """
        if self.positions is None:
            return
        if not math.isfinite(scale):
            self.step.zero_()
            return
        if _distributed():
            dist.all_reduce(self.step)
            self.step /= dist.get_world_size()
        self.step *= scale
        self.total += self.step
        self.squares += self.step.square()
        self.step.zero_()
        self.steps += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it between two steps, to be stored."""
        if self.positions is None:
            return {}
        return {
            "positions": self.positions, "total": self.total, "squares": self.squares,
            "steps": torch.tensor([self.steps]),
        }  # fmt: skip

    def load(self, found: dict[str, torch.Tensor], device: torch.device) -> None:
        """Take back what `tensors` gave."""
        self.watch(found["positions"].to(device))
        self.total, self.squares = found["total"].to(device), found["squares"].to(device)
        self.steps = int(found["steps"])


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
