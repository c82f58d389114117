"""Rows in memory, and batches of them in which no text stands twice: what contrastive training reads.

Where every other row of a batch is taken to be wrong, a text that stands there twice would be wrong and right at once.
Rows are anything with a `group` (rows of one group share batches) and `keys` (equal texts have equal keys; the first
two are those of the question and of its right answer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from core.errors import DataError


class RowDataset(Dataset):
    """Rows in memory. `bins` and `padding_share` are what plans ask of a data set."""

    bins = None
    padding_share = 0.0

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class BatchOrder(Sampler[int]):
    """Rows batch after batch: each batch of one group and, when `distinct`, without a text standing in it twice.

    The order depends on seed and epoch alone. Rows that fill no batch wait for another epoch's order; a group smaller
    than a batch is passed over.

    Raises:
        DataError: no group fills a batch.
    """

    def __init__(self, rows: Sequence[Any], batch: int, seed: int, distinct: bool) -> None:
        self.rows, self.batch, self.seed, self.distinct, self.epoch = rows, batch, seed, distinct, 0
        self.groups: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            self.groups.setdefault(row.group, []).append(number)
        self.count = len(self.batches())
        if not self.count:
            largest = max(len(group) for group in self.groups.values())
            raise DataError(
                f"no group of rows fills a batch of {batch}: the largest has {largest} rows",
                hint="a smaller train.batch.size, or more rows; texts that stand twice do not share a batch",
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count * self.batch

    def batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        made = [batch for name in sorted(self.groups) for batch in self._of(self.groups[name], generator)]
        return [made[i] for i in torch.randperm(len(made), generator=generator).tolist()]

    def _of(self, group: list[int], generator: torch.Generator) -> Iterator[list[int]]:
        waiting = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
        while len(waiting) >= self.batch:
            chosen: list[int] = []
            late: list[int] = []
            seen: set[Any] = set()
            for place, number in enumerate(waiting):
                own = set(self.rows[number].keys[:2]) if self.distinct else set()
                if own & seen:
                    late.append(number)
                    continue
                seen |= own
                chosen.append(number)
                if len(chosen) == self.batch:
                    late += waiting[place + 1 :]
                    break
            if len(chosen) < self.batch:
                return
            yield chosen
            waiting = late

    def __iter__(self) -> Iterator[int]:
        made = self.batches()
        # Another epoch's order may leave one batch more or less; the promised number is kept.
        filled = [made[i % len(made)] for i in range(self.count)] if made else []
        return (number for batch in filled for number in batch)
