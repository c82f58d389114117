"""Training rows of examples that are read as a stream, each made when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

from core.data.rows import BadOnce, BadRows
from core.data.segments import Segment
from core.errors import DataError


def _whole(example: Any) -> Iterable[Any]:
    return (example,)


def _sound(number: int, example: Any) -> DataError | None:
    return None


def rows_of(
    examples: Iterable[Any],
    make: Callable[[Any], list[Segment]],
    parts: Callable[[Any], Iterable[Any]] = _whole,
    fault: Callable[[int, Any], DataError | None] = _sound,
    bad: BadRows | None = None,
) -> Sequence[Sequence[Segment]] | RowStream:
    """The rows of examples, as `RowStream` makes them: a list from a list, a stream from a stream."""
    stream = RowStream(examples, make, parts=parts, fault=fault, bad=bad)
    return [list(row) for row in stream] if isinstance(examples, Sequence) else stream


class RowStream:
    """One row of segments from each part of each example, from the start each time it is iterated, none of them kept.

    Args:
        examples: read anew each time, always in the same order.
        make: part → the segments of its row. It is called when the row is looked at, so that a resumed run and the
            loader workers pass over the rows of others without rendering them.
        parts: example → what each of its rows is made of, by default the example itself.
        fault: (number from 1, example) → what is wrong with it, or None. Such an example is a bad row.
        bad: what happens to bad rows.
    """

    def __init__(
        self,
        examples: Iterable[Any],
        make: Callable[[Any], list[Segment]],
        *,
        parts: Callable[[Any], Iterable[Any]] = _whole,
        fault: Callable[[int, Any], DataError | None] = _sound,
        bad: BadRows | None = None,
    ) -> None:
        self.examples, self.make, self.parts, self.fault = examples, make, parts, fault
        self.bad = BadOnce(bad or BadRows())

    def __iter__(self) -> Iterator[Sequence[Segment]]:
        bad = self.bad.reading()
        for number, example in enumerate(self.examples, 1):
            wrong = self.fault(number, example)
            if wrong is None:
                yield from (_Row(self.make, part) for part in self.parts(example))
            else:
                bad.handle(wrong)


class _Row(Sequence[Segment]):
    def __init__(self, make: Callable[[Any], list[Segment]], part: Any) -> None:
        self._make, self._part = make, part

    @cached_property
    def _segments(self) -> list[Segment]:
        return self._make(self._part)

    def __len__(self) -> int:
        return len(self._segments)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Segment]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._segments[index]
