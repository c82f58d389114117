"""Encoded rows as torch datasets: in memory, and streamed.

A packed data set is a list of bins, each a list of rows that share a sequence; which rows share one is decided once,
so that every epoch and every resume sees the same sequences in the sampler's order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from core.data.encode import IGNORE, Encoded, EncodeStats, encode_stream
from core.data.pack import blocks, pack
from core.errors import DataError, GraftError

Item = Encoded | list[Encoded]
WINDOW = 512


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


class EvenShares(Dataset):
    """A data set filled up with items that carry no loss, so that processes with equal shares lose and repeat no row.

    Args:
        dataset: rows in memory. multiple: what the new length is a multiple of. `blanks` stand at the end.
    """

    def __init__(self, dataset: EncodedDataset, multiple: int) -> None:
        self.dataset, self.blanks = dataset, -len(dataset) % multiple

    def __len__(self) -> int:
        return len(self.dataset) + self.blanks

    def __getitem__(self, index: int) -> Item:
        if index < len(self.dataset):
            return self.dataset[index]
        blank = Encoded([0], [IGNORE])
        return blank if self.dataset.bins is None else [blank]


def block_dataset(documents: Iterable[Sequence[int]], size: int) -> EncodedDataset:
    """A text stream cut into blocks of `size` ids in which every token carries loss."""
    return EncodedDataset([Encoded(ids, list(ids)) for ids in blocks(documents, size)])


class WorkerError(DataError):
    """An error of a loader worker. torch makes it anew in the main process, from what it printed in the worker."""

    MARK = "graft error: "

    def __init__(self, printed: str) -> None:
        what, where, hint = json.loads(printed.rpartition(self.MARK)[2])
        super().__init__(what, hint=hint)
        self.where = where

    @classmethod
    def of(cls, error: GraftError) -> WorkerError:
        return cls(cls.MARK + json.dumps([error.what, error.where, error.hint]))

    def __str__(self) -> str:
        if get_worker_info() is None:
            return super().__str__()
        return self.MARK + json.dumps([self.what, self.where, self.hint])


class IterableEncodedDataset(IterableDataset):
    """Rows encoded (and packed) while training reads them; resumes by `state_dict`.

    Rows are taken in windows; rows of a window are encoded together and share sequences only with each other, so that
    a resume needs the window's number alone. `stats` counts what was read. Processes, and the loader workers of each,
    take turns at windows, and each has a state of its own; a resumed stream passes over raw rows without encoding
    them. A worker's place in the turns is `first_worker` further on, for a loader that went on in mid-turn.

    Args:
        rows: starts the stream from its beginning: () -> iterable of segment lists, the same at every call.
        tokenizer, mode, max_length: as for `encode`; rows that do not fit are dropped and counted.
        packing: puts several rows of a window into a sequence of `max_length`.
        blocks: joins the rows of a window and cuts them into blocks of `max_length`; a short tail is dropped.
        window: rows read at a time, by default `WINDOW`.
        endless: begins again where it ends, for ever.
        seed: shuffles the sequences within a window, anew in every pass; None keeps their order.
        share: (process, processes).
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Any]],
        tokenizer: Any,
        *,
        max_length: int,
        mode: str = "offsets",
        packing: bool = False,
        blocks: bool = False,
        window: int | None = None,
        endless: bool = False,
        seed: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.rows, self.tokenizer, self.mode = rows, tokenizer, mode
        self.max_length, self.packing, self.blocks, self.window = max_length, packing, blocks, window or WINDOW
        self.endless, self.seed, self.share = endless, seed, share
        self.stats = EncodeStats()
        self.passes = self.windows = self.emitted = 0
        self.worker = self.first_worker = 0
        self.workers: dict[int, dict[str, int]] = {}

    def __iter__(self) -> Iterator[Item]:
        return (item for item, _ in self.placed())

    def placed(self) -> Iterator[tuple[Item, dict[str, int]]]:
        """Each item with the state of its worker's stream after it, and the worker's number."""
        try:
            yield from self._placed()
        except GraftError as error:
            if get_worker_info() is None:
                raise
            raise WorkerError.of(error) from None

    def _placed(self) -> Iterator[tuple[Item, dict[str, int]]]:
        number, count = self._turn()
        while True:
            stream = iter(self.rows())
            for _ in islice(stream, self.windows * self.window):
                pass
            while chunk := list(islice(stream, self.window)):
                if self.windows % count == number:
                    items = self._items(chunk)
                    for item in items[self.emitted :]:
                        self.emitted += 1
                        yield item, {**self.state_dict(), "worker": self.worker}
                self.windows, self.emitted = self.windows + 1, 0
            self.passes, self.windows, self.emitted = self.passes + 1, 0, 0
            if not self.endless:
                return

    def _turn(self) -> tuple[int, int]:
        """This reader's number among all readers of the stream, and how many they are."""
        worker = get_worker_info()
        process, processes = self.share
        if worker is None:
            return process, processes
        own = (worker.id + self.first_worker) % worker.num_workers
        if own in self.workers:
            self.load_state_dict(self.workers[own])
        self.worker = own
        return process * worker.num_workers + own, processes * worker.num_workers

    def _items(self, chunk: list[Any]) -> list[Item]:
        bound = None if self.blocks else self.max_length
        encoded = encode_stream(chunk, self.tokenizer, mode=self.mode, max_length=bound)  # type: ignore[arg-type]
        rows = [row for row in encoded if self.stats.add(row)]
        items: list[Item] = list(rows)
        if self.blocks:
            items = list(block_dataset([row.input_ids for row in rows], self.max_length).rows)
        elif self.packing:
            items = [[rows[i] for i in b] for b in pack([len(r.input_ids) for r in rows], self.max_length)]
        if self.seed is not None:
            random.Random(f"{self.seed}/{self.passes}/{self.windows}").shuffle(items)
        return items

    def state_dict(self) -> dict[str, int]:
        """Passes and windows read whole, and items already given of the window being read."""
        return {"passes": self.passes, "windows": self.windows, "emitted": self.emitted}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.windows, self.emitted = state["passes"], state["windows"], state["emitted"]
