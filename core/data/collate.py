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
        packing: items are lists of rows; None tells by the items.
        max_length: a longer sequence is refused; None refuses none.
        multiple: sequence lengths are rounded up to this (not beyond `max_length`), for the fast paths of GPU kernels.

    Returns:
        padded: input_ids, labels, attention_mask, each (B, T), without the mask when every row is `max_length` long;
        packed: input_ids, labels, position_ids, each (B, T).
        The first label of every row is `IGNORE`: nothing of the same row predicts it, and what counts labels then
        counts the terms of the loss.
    """

    pad_id: int
    packing: bool | None = None
    max_length: int | None = None
    multiple: int = 8

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        import torch

        packing = isinstance(items[0], list) if self.packing is None else self.packing
        lines = [item if isinstance(item, list) else [item] for item in items]
        lengths = [sum(len(row.input_ids) for row in rows) for rows in lines]
        length = self._length(max(lengths))
        ids, labels, third = [], [], []
        for rows, filled in zip(lines, lengths):
            fill = length - filled
            ids.append([i for row in rows for i in row.input_ids] + [self.pad_id] * fill)
            labels.append([label for row in rows for label in _labels(row)] + [IGNORE] * fill)
            if packing:
                third.append([p for row in rows for p in range(len(row.input_ids))] + list(range(fill)))
            else:
                third.append([1] * filled + [0] * fill)
        batch = {"input_ids": ids, "labels": labels}
        if packing or min(lengths) < length or length != self.max_length:
            batch["position_ids" if packing else "attention_mask"] = third
        return {name: torch.tensor(rows, dtype=torch.long) for name, rows in batch.items()}

    def _length(self, longest: int) -> int:
        if self.max_length is None:
            return -(-longest // self.multiple) * self.multiple
        if longest > self.max_length:
            raise ValueError(f"a sequence of {longest} tokens in a batch of at most {self.max_length}")
        return min(-(-longest // self.multiple) * self.multiple, self.max_length)


def _labels(row: Encoded) -> list[int]:
    return [IGNORE, *row.labels[1:]]
