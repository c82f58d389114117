"""Encoded rows as torch datasets: in memory, and streamed.

A packed data set is a list of bins, each a list of rows that share a sequence; which rows share one is decided once,
so that every epoch and every resume sees the same sequences in the sampler's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from core.data.encode import Encoded, EncodeStats, encode_stream
from core.data.pack import blocks, pack

Item = Encoded | list[Encoded]


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

    def __getitem__(self, index: int) -> Item:
        return self.rows[index] if self.bins is None else [self.rows[i] for i in self.bins[index]]

    @property
    def padding_share(self) -> float:
        """Share of a packed sequence's room that holds no row; 0 for unpacked rows."""
        if not self.bins:
            return 0.0
        sizes = [sum(len(self.rows[i].input_ids) for i in b) for b in self.bins]
        return 1 - sum(sizes) / (len(sizes) * max(sizes))


def block_dataset(documents: Iterable[Sequence[int]], size: int) -> EncodedDataset:
    """A text stream cut into blocks of `size` ids in which every token carries loss."""
    return EncodedDataset([Encoded(ids, list(ids)) for ids in blocks(documents, size)])


class IterableEncodedDataset(IterableDataset):
    """Rows encoded (and packed) while training reads them; resumes by `state_dict`.

    Rows are taken in windows; rows of a window are encoded together and share sequences only with each other, so that
    a resume needs the window's number alone. `stats` counts what was read. Loader workers take turns at windows, and
    each has a state of its own.

    Args:
        rows: starts the stream from its beginning: () -> iterable of segment lists, the same at every call.
        tokenizer, mode, max_length: as for `encode`; rows that do not fit are dropped and counted.
        packing: puts several rows of a window into a sequence of `max_length`.
        window: rows read at a time.
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Any]],
        tokenizer: Any,
        *,
        max_length: int,
        mode: str = "offsets",
        packing: bool = False,
        window: int = 512,
    ) -> None:
        self.rows, self.tokenizer, self.mode = rows, tokenizer, mode
        self.max_length, self.packing, self.window = max_length, packing, window
        self.stats = EncodeStats()
        self.windows = self.emitted = 0

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stream = iter(self.rows())
        for _ in islice(stream, self.windows * self.window):
            pass
        while chunk := list(islice(stream, self.window)):
            if self.windows % count == number:
                items = self._items(chunk)
                for item in items[self.emitted :]:
                    self.emitted += 1
                    yield item
            self.windows, self.emitted = self.windows + 1, 0
        self.windows = self.emitted = 0

    def _items(self, chunk: list[Any]) -> list[Item]:
        encoded = encode_stream(chunk, self.tokenizer, mode=self.mode, max_length=self.max_length)  # type: ignore[arg-type]
        rows = [row for row in encoded if self.stats.add(row)]
        if not self.packing:
            return list(rows)
        return [[rows[i] for i in b] for b in pack([len(r.input_ids) for r in rows], self.max_length)]

    def state_dict(self) -> dict[str, int]:
        """Windows read whole, and items already given of the one being read."""
        return {"windows": self.windows, "emitted": self.emitted}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.windows, self.emitted = state["windows"], state["emitted"]
