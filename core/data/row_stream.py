"""Training rows of examples that are read as a stream, each made when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

from core.data.rows import BadOnce, BadRows
from core.data.segments import Segment
from core.errors import DataError


class RowStream:
    """One row of segments from each example, from the start each time it is iterated, none of them kept.

    Args:
        examples: read anew each time, always in the same order.
        make: example → the segments of its row. It is called when the row is looked at, so that a resumed run and the
            loader workers pass over the rows of others without rendering them.
        fault: (number from 1, example) → what is wrong with it, or None. Such an example is a bad row.
        bad: what happens to bad rows.
    """

    def __init__(
        self,
        examples: Iterable[Any],
        make: Callable[[Any], list[Segment]],
        *,
        fault: Callable[[int, Any], DataError | None] = lambda number, example: None,
        bad: BadRows | None = None,
    ) -> None:
        self.examples, self.make, self.fault = examples, make, fault
        self.bad = BadOnce(bad or BadRows())

    def __iter__(self) -> Iterator[Sequence[Segment]]:
        bad = self.bad.reading()
        for number, example in enumerate(self.examples, 1):
            wrong = self.fault(number, example)
            if wrong is None:
                yield _Row(self.make, example)
            else:
                bad.handle(wrong)


class _Row(Sequence[Segment]):
    def __init__(self, make: Callable[[Any], list[Segment]], example: Any) -> None:
        self._make, self._example = make, example

    @cached_property
    def _segments(self) -> list[Segment]:
        return self._make(self._example)

    def __len__(self) -> int:
        return len(self._segments)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Segment]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._segments[index]
