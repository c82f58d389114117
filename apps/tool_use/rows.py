"""Rows of other people's files: whatever is wrong with one is told with its place, and never breaks the reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.data.rows import BadRows, jsonl
from core.errors import DataError, GraftError


@contextmanager
def told(on_bad: BadRows, what: str, *, field: str | None = None, **place: Any) -> Iterator[None]:
    """Reading of one row inside; an error there goes to `on_bad` with the row's place, and the row is left.

    Args:
        what: the row should have been. field: where the row stands in its file. place: `file` and `line`.
    """
    try:
        yield
    except GraftError as error:
        inner = getattr(error, "field", None) or (None if isinstance(error, DataError) else error.where)
        at = " ".join(filter(None, [field, inner])) or None
        on_bad.handle(DataError(error.what, field=at, hint=error.hint, **place))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        on_bad.handle(DataError(f"not {what}: {error!r}", field=field, **place))


def expected_of(given: Any) -> tuple[Mapping[str, Any], ...]:
    """What calls may be, checked: for each one tool's name, and for each argument the list of values that count."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise DataError("what is expected is a list of calls", field="expected", got=given)
    for number, call in enumerate(given):
        named = isinstance(call, Mapping) and len(call) == 1 and isinstance(next(iter(call.values())), Mapping)
        if not named or not all(isinstance(values, list) for values in next(iter(call.values())).values()):
            hint = '{"name": {"argument": [values that count]}}'
            raise DataError("an expected call has one name and lists of values", field=f"expected[{number}]", got=call,
                            hint=hint)  # fmt: skip
    return tuple(given)


def answers_of(file: Path, on_bad: BadRows) -> dict[str, Any]:
    """The leaderboard's right calls by id."""
    answers = {}
    for number, row in jsonl(file, on_bad):
        with told(on_bad, "an answer of the leaderboard", file=file, line=number):
            answers[str(row["id"])] = expected_of(row["ground_truth"])
    return answers
