"""Reading data files: JSON lines and folders of text, with the place of whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from core.errors import DataError

Example = TypeVar("Example")


def reject(on_bad: Any, error: DataError) -> None:
    """Hand a malformed row to `on_bad`, or raise."""
    if on_bad is None or on_bad == "raise":
        raise error
    on_bad.handle(error)


def required(path: str | Path | None, *inside: str) -> Path:
    """An existing file: `path`, or the first of `inside` in the folder `path`."""
    if path is None:
        raise DataError("the reader needs a path", hint="set path: in the source")
    place = Path(path)
    if place.is_dir():
        for name in inside:
            if (place / name).is_file():
                return place / name
        raise DataError(f"the folder holds no {' or '.join(inside)}", file=place)
    if not place.is_file():
        raise DataError("file not found", file=place)
    return place


def read_text(path: Path) -> str:
    """A text file; one that is not UTF-8 is read as Latin-1, as old Verilog comments are."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def json_lines(file: Path, on_bad: Any) -> Iterator[tuple[int, dict]]:
    """Numbered objects of a JSON lines file, or of one JSON list."""
    text = read_text(file)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"not valid JSON: {error.msg}", file=file, line=error.lineno) from error
        numbered = list(enumerate(rows, 1))
    else:
        numbered = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                numbered.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                reject(on_bad, DataError(f"not valid JSON: {error.msg}", file=file, line=number, got=line))
    for number, row in numbered:
        if isinstance(row, dict):
            yield number, row
        else:
            reject(on_bad, DataError("the row is not an object", file=file, line=number, got=row))


def examples_of(
    path: str | Path, split: str | None, on_bad: Any, example_from: Callable[..., Example]
) -> Iterator[Example]:
    """The examples of a JSONL file, or of the one that a folder has for the split (train by default).

    Args:
        example_from: `(row, file=, line=)` → one example; raises `DataError` for a malformed row.
    """
    file = required(path, f"{split or 'train'}.jsonl")
    for number, row in json_lines(file, on_bad):
        try:
            yield example_from(row, file=file, line=number)
        except DataError as error:
            reject(on_bad, error)


def fields(row: dict, names: tuple[str, ...], file: Path, line: int) -> list[str]:
    """The text fields `names` of a row. Raises `DataError` for one that is missing or no text."""
    for name in names:
        if not isinstance(row.get(name), str):
            have = ", ".join(sorted(row))
            raise DataError(
                "missing or not text", file=file, line=line, field=name, got=row.get(name), hint=f"the row has: {have}"
            )
    return [row[name] for name in names]
