"""Rows from sources: what happens to a bad one, and how several sources become one stream."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.load import missing_variables
from core.config.registry import App
from core.config.schema import SourceConfig
from core.errors import DataError

LINES = "the file is read as JSON lines, one object a line; graft ls readers shows what reads other files"
MARKS = {
    b"\x1f\x8b": "it is compressed: gunzip it",
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"PAR1": "it is a Parquet file: write its rows as JSON lines",
    b"\xff\xfe": "it is UTF-16: convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "it is UTF-16: convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8",
}


class BadRows:
    """What a malformed row does.

    Args:
        policy: "raise" stops at the first one; "skip" counts it and appends it to `rejects`.
        rejects: JSONL file of skipped rows with their place and reason; None keeps only the count.

    Attributes:
        first: the first few that were skipped.
    """

    def __init__(self, policy: str = "raise", rejects: str | Path | None = None) -> None:
        self.policy, self.rejects, self.count = policy, None if rejects is None else Path(rejects), 0
        self.first: list[DataError] = []

    def handle(self, error: DataError) -> None:
        """Raise `error`, or record it."""
        if self.policy == "raise":
            raise error
        self.count += 1
        if len(self.first) < 3:
            self.first.append(error)
        if self.rejects is not None:
            row = {"file": error.file, "line": error.line, "field": error.field, "why": error.what}
            self.rejects.parent.mkdir(parents=True, exist_ok=True)
            with open(self.rejects, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_source(app: App, source: SourceConfig, bad: BadRows) -> Iterator[Any]:
    """The examples of one source through the app's reader, at most `limit` of them."""
    for name in missing_variables(source.path):
        raise DataError(f"the environment variable {name} is not set", file=source.path, hint=f"export {name}=…")
    reader = app.readers.get(source.reader)
    rows = reader(source.path, split=source.split, on_bad=bad, **source.with_)
    return itertools.islice(rows, source.limit)


@dataclass(frozen=True)
class SourceRows:
    """One source as an iterable that starts anew each time. Raises `DataError` when there is no usable row."""

    app: App
    source: SourceConfig
    bad: BadRows

    def __iter__(self) -> Iterator[Any]:
        empty = True
        for row in read_source(self.app, self.source, self.bad):
            empty = False
            yield row
        if empty:
            raise DataError("the source has no usable rows", file=self.source.path or self.source.reader)


def read_sources(app: App, sources: Sequence[SourceConfig], bad: BadRows, seed: int = 0) -> list[Any]:
    """All examples of all sources, interleaved by weight. Raises `DataError` for a source without rows.

    One source keeps its order. Of several, each contributes all its rows once; weights decide how they alternate.
    """
    return list(stream_sources(app, sources, bad, seed))


def stream_sources(app: App, sources: Sequence[SourceConfig], bad: BadRows, seed: int = 0) -> Iterator[Any]:
    """As `read_sources`, reading as it goes."""
    streams = [SourceRows(app, source, bad) for source in sources]
    if len(streams) == 1:
        return iter(streams[0])
    return (row for _, row in interleave(streams, [s.weight for s in sources], seed))


class BadOnce(BadRows):
    """Hands each bad row on once, however often and however far the rows are read.

    Rows come in the same order in every reading, so the n-th bad row is always the same one. Of several loader workers
    the first hands on.
    """

    def __init__(self, bad: BadRows) -> None:
        super().__init__(bad.policy)
        self.bad, self.told = bad, 0

    def reading(self) -> BadRows:
        """What a reading from the start gives its bad rows to."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        if worker is not None and worker.id:
            return BadRows(self.policy)
        self.count = 0
        return self

    def handle(self, error: DataError) -> None:
        self.count += 1
        if self.count > self.told:
            self.bad.handle(error)
            self.told = self.count


class Examples:
    """All examples of all sources, read anew from the start each time it is iterated, never held together."""

    def __init__(self, app: App, sources: Sequence[SourceConfig], bad: BadRows, seed: int = 0) -> None:
        self.app, self.sources, self.bad, self.seed = app, sources, BadOnce(bad), seed

    def __iter__(self) -> Iterator[Any]:
        return stream_sources(self.app, self.sources, self.bad.reading(), self.seed)


def interleave(sources: Sequence[Iterable[Any]], weights: Sequence[float], seed: int = 0) -> Interleave:
    """Draw from several sources in proportion to weights until all are exhausted."""
    return Interleave(sources, weights, seed)


class Interleave:
    """A resumable draw from several sources.

    Iterating yields (source number, row). `state_dict` and `load_state_dict` continue exactly where it stopped, and
    `realised` tells the shares drawn so far. A source that runs out leaves its share to the others. Sources are
    iterables that give the same rows each time; a resume passes over the rows already drawn.
    """

    def __init__(self, sources: Sequence[Iterable[Any]], weights: Sequence[float], seed: int = 0) -> None:
        self.sources, self.weights = sources, list(weights)
        self.positions = [0] * len(sources)
        self.open = list(range(len(sources)))
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        streams = {i: itertools.islice(iter(self.sources[i]), self.positions[i], None) for i in self.open}
        while self.open:
            chosen = self._random.choices(self.open, [self.weights[i] for i in self.open])[0]
            try:
                row = next(streams[chosen])
            except StopIteration:
                self.open.remove(chosen)
                continue
            self.positions[chosen] += 1
            yield chosen, row

    def realised(self) -> list[float]:
        """Share of each source in the rows drawn so far."""
        total = sum(self.positions) or 1
        return [p / total for p in self.positions]

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, fit for JSON."""
        version, numbers, gauss = self._random.getstate()
        return {"positions": list(self.positions), "open": list(self.open), "random": [version, list(numbers), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.positions, self.open = list(state["positions"]), list(state["open"])
        version, numbers, gauss = state["random"]
        self._random.setstate((version, tuple(numbers), gauss))


def jsonl(path: str | Path, bad: BadRows) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSONL file; a line that is not an object is a bad row. Blank lines are passed over.

    A byte order mark in front, as Windows writes it, belongs to no row.
    """
    try:
        handle = open(path, encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from error
    with handle:
        for number, line in enumerate(_decoded(handle, path), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                # only the last line can end without a line break
                cut = "the last line is cut off, " if not line.endswith("\n") else ""
                hint = LINES if number == 1 else None
                what = f"{cut}not valid JSON: {error.msg}"
                bad.handle(DataError(what, file=path, line=number, got=line.strip(), hint=hint))
                continue
            except RecursionError:
                bad.handle(DataError("JSON nested too deeply to be a row", file=path, line=number))
                continue
            if not isinstance(value, dict):
                bad.handle(DataError("not an object", file=path, line=number, got=value, expected="{…}"))
                continue
            yield number, value


def _decoded(handle: Iterable[str], path: str | Path) -> Iterator[str]:
    try:
        yield from handle
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error


def not_utf8(path: str | Path) -> DataError:
    """What to say of a file that is not UTF-8, with the byte and the line of its first such character."""
    start = 0
    with open(path, "rb") as handle:
        hint = _what_it_is(handle.read(4096))
        handle.seek(0)
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(f"not UTF-8 at byte {start + error.start}", file=path, line=number, hint=hint)
            start += len(line)
    return DataError("not UTF-8", file=path, hint=hint)


def _what_it_is(head: bytes) -> str:
    for mark, hint in MARKS.items():
        if head.startswith(mark):
            return hint
    return "it is no text: name a file of text" if b"\0" in head else "convert the file to UTF-8"
