"""Batches: padded rows, or packed sequences whose documents cannot see each other.

A packed batch carries `position_ids` that restart at every document and **no** attention mask: transformers then
builds the block-diagonal mask from the restarts, on CPU and GPU alike. An all-ones mask beside packed rows would
silently let documents attend to each other, and a key-value cache would switch the detection off, so training calls
the model with `use_cache=False`. Padding at the end of a packed sequence is one more document, without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.encode import IGNORE, Encoded


@dataclass
class Collator:
    """Makes a batch of items: each item is one `Encoded` row, or a list of rows that share a packed sequence.

    Args:
        pad_id: fills the ends; it never carries loss.
        multiple: sequence lengths are rounded up to this, which keeps GPU kernels on their fast path.

    Returns:
        padded: input_ids, labels, attention_mask, each (B, T); packed: input_ids, labels, position_ids, each (B, T).
        Both: useful (1,), the number of tokens that are not padding.
    """

    pad_id: int
    multiple: int = 8

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        if items and isinstance(items[0], list):
            return self._packed(items)
        return self._padded(items)

    def _length(self, longest: int) -> int:
        return -(-longest // self.multiple) * self.multiple

    def _padded(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        import torch

        length = self._length(max(len(r.input_ids) for r in rows))
        ids, labels, mask = [], [], []
        for row in rows:
            fill = length - len(row.input_ids)
            ids.append(row.input_ids + [self.pad_id] * fill)
            labels.append(_unseen_first(row) + [IGNORE] * fill)
            mask.append([1] * len(row.input_ids) + [0] * fill)
        useful = sum(len(r.input_ids) for r in rows)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask, "useful": [useful]}
        return {name: torch.tensor(value) for name, value in batch.items()}

    def _packed(self, bins: Sequence[list[Encoded]]) -> dict[str, Any]:
        import torch

        length = self._length(max(sum(len(r.input_ids) for r in rows) for rows in bins))
        ids, labels, positions = [], [], []
        for rows in bins:
            line = [i for r in rows for i in r.input_ids]
            fill = length - len(line)
            ids.append(line + [self.pad_id] * fill)
            labels.append([label for r in rows for label in _unseen_first(r)] + [IGNORE] * fill)
            positions.append([p for r in rows for p in range(len(r.input_ids))] + list(range(fill)))
        useful = sum(len(r.input_ids) for rows in bins for r in rows)
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions, "useful": [useful]}
        return {name: torch.tensor(value) for name, value in batch.items()}


def _unseen_first(row: Encoded) -> list[int]:
    """The labels without the first: no earlier token of the same document predicts it, so it must not be counted."""
    return [IGNORE, *row.labels[1:]]
