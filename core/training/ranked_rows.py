"""Rows that carry ranked answers: a reference, scored candidates of the same prompt, and batches of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.data.collate import Collator
from core.data.encode import IGNORE, Encoded
from core.training.trainer import CountingCollator


@dataclass(frozen=True)
class Scored:
    """A candidate: its ids without the prompt, with the end of text unless it was cut, its text and its score."""

    ids: list[int]
    text: str
    score: float
    cut: bool = False


@dataclass(frozen=True)
class Group:
    """A row: its reference, candidates, and the scores of all, the reference's first."""

    reference: Encoded
    candidates: tuple[Encoded, ...]
    scores: tuple[float, ...]


class GroupDataset(torch.utils.data.Dataset):
    """Rows that get candidates as the iterations go by."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = list(rows)
        self.candidates: list[list[Any]] = [[] for _ in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, index: int) -> list[int]:
        """The ids before the first learnt one."""
        row = self.rows[index]
        return row.input_ids[: next(i for i, label in enumerate(row.labels) if label != IGNORE)]

    def __getitem__(self, index: int) -> Group:
        """A row with its distinct candidates: a copy has nothing to be ranked against, and would take a share."""
        prompt = self.prompt(index)
        seen, kept = {tuple(label for label in self.rows[index].labels if label != IGNORE)}, []
        for candidate in self.candidates[index]:
            if candidate.ids and tuple(candidate.ids) not in seen:
                seen.add(tuple(candidate.ids))
                kept.append(candidate)
        rows = tuple(Encoded(prompt + c.ids, [IGNORE] * len(prompt) + list(c.ids)) for c in kept)
        return Group(self.rows[index], rows, (1.0, *(c.score for c in kept)))


class GroupCollator:
    """Batches of rows with their candidates: each item becomes 1 + K sequences, the reference first.

    Adds `targets` (B, T), labels of every sequence, and `groups` (B,), the number of each one's row within the batch;
    `labels` keep only the reference's, because they are what the loss of likelihood is averaged over.
    """

    def __init__(self, pad_id: int) -> None:
        self.inner = CountingCollator(Collator(pad_id))

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        groups = [item if isinstance(item, Group) else Group(item, (), (1.0,)) for item in items]
        rows = [row for group in groups for row in (group.reference, *group.candidates)]
        batch = self.inner(rows)
        batch["targets"] = batch["labels"].clone()
        sizes = [1 + len(group.candidates) for group in groups]
        batch["groups"] = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(sizes))
        batch["scores"] = torch.tensor([score for group in groups for score in group.scores])
        at = 0
        for size in sizes:
            batch["labels"][at + 1 : at + size] = IGNORE
            at += size
        return batch
