"""Put rows into sequences of fixed length: whole rows by best fit, or a text stream cut into blocks."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Best-fit-decreasing bins of row numbers, each bin's lengths summing to at most `max_length`.

    Deterministic; rows are never split. O(n log n) for the search, by a sorted list of free room.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for row in order:
        need = lengths[row]
        if need > max_length:
            raise ValueError(f"row {row} has {need} tokens, a sequence holds {max_length}")
        at = bisect.bisect_left(room, (need, -1))
        if at == len(room):
            bins.append([row])
            left, number = max_length - need, len(bins) - 1
        else:
            left, number = room.pop(at)
            bins[number].append(row)
            left -= need
        bisect.insort(room, (left, number))
    return bins


def blocks(documents: Iterable[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Documents joined and cut into blocks of `size` ids; a short tail is dropped unless it is the only block."""
    buffer: list[int] = []
    produced = False
    for ids in documents:
        buffer.extend(ids)
        whole = len(buffer) // size * size
        for start in range(0, whole, size):
            yield buffer[start : start + size]
            produced = True
        del buffer[:whole]
    if buffer and not produced:
        yield buffer
