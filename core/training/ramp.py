"""A batch that grows to its size (Brown et al. 2020): early gradients agree so well that small batches lose nothing.

A step keeps its number of micro-batches, and these hold fewer sequences at first. The run is one walk through as many
permutations of the rows as it needs, so a resumed run finds its place by counting micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback

from core.config.schema import BatchConfig
from core.distributed.launch import rank, world_size


@dataclass(frozen=True)
class Ramp:
    """Sequences of a micro-batch on each process: over `length` steps from a share `start` of `micro` to all."""

    micro: int
    length: int
    start: float

    @classmethod
    def of(cls, batch: BatchConfig, micro: int, steps: int) -> Ramp:
        """The ramp of a recipe whose run has so many steps."""
        return cls(micro, int(batch.ramp if batch.ramp >= 1 else round(batch.ramp * steps)), batch.start)

    def at(self, step: int) -> int:
        if step >= self.length:
            return self.micro
        return max(1, round(self.micro * (self.start + (1 - self.start) * step / self.length)))

    def read_by(self, step: int) -> int:
        """Sequences of one row of micro-batches over the first `step` steps."""
        return sum(map(self.at, range(min(step, self.length)))) + max(0, step - self.length) * self.micro


def steps_to_read(batch: BatchConfig, micro: int, each: int, sequences: float) -> int:
    """Fewest steps that read so many sequences.

    Args:
        each: micro-batches of a step, over all processes.
    """
    low, high = 1, 1
    while Ramp.of(batch, micro, high).read_by(high) * each < sequences:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        enough = Ramp.of(batch, micro, middle).read_by(middle) * each >= sequences
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


class GrowingBatches(Sampler[list[int]]):
    """Indices of every micro-batch of a run for this process.

    Args:
        size: rows. seed: of the permutations. share: (process, processes).
    """

    def __init__(
        self, size: int, seed: int, ramp: Ramp, steps: int, accumulation: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.size, self.seed, self.ramp, self.share = size, seed, ramp, share
        self.steps, self.accumulation = steps, accumulation

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        own, processes = self.share
        rows = self._rows()
        for step in range(self.steps):
            for _ in range(self.accumulation):
                yield list(islice(rows, self.ramp.at(step) * processes))[own::processes]

    def _rows(self) -> Iterator[int]:
        """Permutation after permutation, for ever."""
        from core.training.trainer import EpochSampler

        sampler, epoch = EpochSampler(self.size, self.seed), 0
        while True:
            sampler.set_epoch(epoch)
            yield from sampler
            epoch += 1


def ramped(trainer_cls: type, batch: BatchConfig) -> type:
    """`trainer_cls` whose batches grow."""
    return type(f"Ramped{trainer_cls.__name__}", (Ramped, trainer_cls), {"batch": batch})


class Ramped:
    """Mixin for a Trainer over rows in memory; `batch` is set by `ramped`."""

    batch: BatchConfig

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self.args
        self.ramp = Ramp.of(self.batch, given.per_device_train_batch_size, given.max_steps)
        self.add_callback(Read(self))

    def get_train_dataloader(self: Any) -> DataLoader:
        given, dataset = self.args, self.train_dataset
        share, each = (rank(), world_size()), given.gradient_accumulation_steps
        return DataLoader(
            dataset,
            batch_sampler=GrowingBatches(len(dataset), given.seed, self.ramp, given.max_steps, each, share),
            collate_fn=self.data_collator,
            num_workers=given.dataloader_num_workers,
            pin_memory=given.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(given.seed),
        )


class Read(TrainerCallback):
    """The epoch of a run whose batches grow: how often its rows were read."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        each = args.gradient_accumulation_steps * world_size()
        state.epoch = self.trainer.ramp.read_by(state.global_step) * each / len(self.trainer.train_dataset)
