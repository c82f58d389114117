"""A step over pairs is the same however its batch is cut.

TRL gives the mean over the pairs of a micro-batch, and of likelihood terms the mean over its tokens; averaged over an
accumulation window or over processes, a short last micro-batch or short answers would weigh as much as full ones. Here
each mean is weighed by its share of the whole window's pairs or tokens, which are counted before the window begins.
"""

from __future__ import annotations

from typing import Any

from core.training.preference.frame import Frame


class Pairwise(Frame):
    """Mixin for trainers on pairs; `compute_loss` sums to the window's own mean."""

    # what compute_loss gives is divided by the window's counts already
    loss_is_scaled_for_ga: Any = True
    _window: tuple[float, float] | None = None

    def counts(self, inputs: dict[str, Any]) -> tuple[int, Any]:
        """Pairs of a micro-batch, and tokens of their better answers."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its batches are counted")

    def get_batch_samples(self: Any, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        import torch

        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        found = [self.counts(batch) for batch in batches]
        totals = torch.tensor([float(sum(int(n) for n in column)) for column in zip(*found)] or [0.0, 0.0])
        pairs, tokens = self.accelerator.reduce(totals.to(device), reduction="sum").tolist()
        self._window = (max(pairs, 1.0), max(tokens, 1.0))
        return batches, items

    def shares(self: Any, inputs: dict[str, Any]) -> tuple[float, float]:
        """The micro-batch's share of the window's pairs and tokens, times the processes; (1, 1) outside training."""
        if self._window is None or not self.model.training:
            return 1.0, 1.0
        pairs, tokens = self.counts(inputs)
        processes = self.accelerator.num_processes
        return pairs / self._window[0] * processes, float(tokens) / self._window[1] * processes
