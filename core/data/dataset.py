"""Encoded rows as torch datasets: in memory, and streamed.

A packed data set is a list of bins, each a list of rows that share a sequence; which rows share one is decided once,
so that every epoch and every resume sees the same sequences in the sampler's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from core.data.encode import Encoded, encode
from core.data.pack import blocks, pack


class EncodedDataset(Dataset):
    """Rows in memory.

    Args:
        rows: encoded rows. max_length: packs them into sequences of this length; None leaves one row an item.
    """

    def __init__(self, rows: Sequence[Encoded], max_length: int | None = None) -> None:
        self.rows = list(rows)
        self.bins = None if max_length is None else pack([len(r.input_ids) for r in self.rows], max_length)

    def __len__(self) -> int:
        return len(self.rows) if self.bins is None else len(self.bins)

    def __getitem__(self, index: int) -> Encoded | list[Encoded]:
        return self.rows[index] if self.bins is None else [self.rows[i] for i in self.bins[index]]

    @property
    def padding_share(self) -> float:
        """Share of a packed sequence's room that holds no row; 0 for unpacked rows."""
        if self.bins is None:
            return 0.0
        sizes = [sum(len(self.rows[i].input_ids) for i in b) for b in self.bins]
        return 1 - sum(sizes) / (len(sizes) * max(sizes))


def block_dataset(documents: Iterable[Sequence[int]], size: int) -> EncodedDataset:
    """A text stream cut into blocks of `size` ids in which every token carries loss."""
    return EncodedDataset([Encoded(ids, list(ids)) for ids in blocks(documents, size)])


class StreamingDataset(IterableDataset):
    """Rows encoded while training reads them; resumes by `state_dict`.

    Args:
        make_rows: starts the stream from its beginning: () -> iterator of segment lists.
        tokenizer, mode, max_length: as for `encode`; rows that do not fit are counted in `dropped`.
    """

    def __init__(self, make_rows: Callable[[], Iterator[Any]], tokenizer: Any, mode: str, max_length: int) -> None:
        self.make_rows, self.tokenizer, self.mode, self.max_length = make_rows, tokenizer, mode, max_length
        self.position = self.dropped = 0

    def __iter__(self) -> Iterator[Encoded]:
        for number, segments in enumerate(self.make_rows()):
            if number < self.position:
                continue
            self.position = number + 1
            row = encode(segments, self.tokenizer, mode=self.mode, max_length=self.max_length)
            if row is None or row.trained == 0:
                self.dropped += 1
                continue
            yield row
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "dropped": self.dropped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.dropped = state["position"], state["dropped"]
