"""Reading data files: JSON lines and folders of text, with the place of whatever is wrong."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator, Sequence
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
    if not path:
        raise DataError("the reader needs a path", hint="set path: in the source")
    place = Path(path)
    if place.is_dir():
        for name in inside:
            if (place / name).is_file():
                return place / name
        raise none_inside(place, inside)
    if not place.is_file():
        raise not_found(place)
    return place


def not_found(place: str | Path) -> DataError:
    """What to say of a path that leads to nothing: with the name beside it that is most like it."""
    place = Path(place)
    if place.is_symlink():
        hint = f"it is a link to {os.readlink(place)}, which is not there"
    elif place.parts[:1] == ("~",):
        hint = "~ is not expanded in a recipe: write ${HOME}/… or the whole path"
    elif not place.parent.is_dir():
        hint = f"there is no folder {place.parent}; the path starts from {Path.cwd()}"
    else:
        beside = {found.stem: found.name for found in sorted(place.parent.glob(f"*{place.suffix}"))}
        close = difflib.get_close_matches(place.stem, beside, n=1, cutoff=0.5)
        hint = f"did you mean '{beside[close[0]]}'?" if close else f"the path starts from {Path.cwd()}"
    return DataError("file not found", file=place, hint=hint)


def none_inside(folder: Path, names: Sequence[str]) -> DataError:
    """What to say of a folder that lacks the file of a split, or that a reader does not read at all."""
    if not names:
        return DataError("this is a folder, and the reader reads a file", file=folder, hint=_holds(folder))
    ending = names[0].partition(".")[2]
    others = sorted(found.stem for found in folder.glob(f"*.{ending}"))
    hint = f"set split: to one of {', '.join(others[:5])}" if others else _holds(folder)
    return DataError(f"the folder holds no {' or '.join(names)}", file=folder, hint=hint)


def _holds(folder: Path) -> str:
    found = sorted(place.name for place in folder.iterdir())
    return f"it holds: {', '.join(found[:5])}{', …' if len(found) > 5 else ''}" if found else "it is empty"


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
