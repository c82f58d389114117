"""All bad rows of a source, and a copy of its file without them.

It knows files of JSON, by lines or as one list; a copy is always JSON lines. A file is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path

from core.config.files import write_text
from core.data.json_list import json_list
from core.data.rows import BadRows
from core.errors import DataError


class Listed(BadRows):
    """Keeps every bad row's error.

    Args:
        most: at so many the first one is raised, without a look at the rest; None keeps all.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__("skip")
        self.most, self.errors = most, list[DataError]()

    def handle(self, error: DataError) -> None:
        super().handle(error)
        self.errors.append(error)
        if self.count == self.most:
            raise self.told()

    def told(self, usable: bool = True) -> DataError:
        """The first error, with the places of the others and what can be done about all.

        Args:
            usable: whether there are other rows.
        """
        first, others = self.errors[0], [str(e.line) for e in self.errors[1:] if e.line is not None]
        if not usable:
            more, ways = f"none of the {self.count} rows can be used" if self.count > 1 else "", ""
        else:
            shown = f"{', '.join(others[:5])}{', …' if len(others) > 5 else ''}"
            more = "" if not others else f"rows {shown} are bad too" if len(others) > 1 else f"row {shown} is bad too"
            ways = "data.on_bad: skip leaves such rows out, graft check --fix writes a copy without them"
        return first.with_hint("; ".join(filter(None, [first.hint, more, ways])) or None)


def clean_copies(errors: list[DataError]) -> dict[str, Path]:
    """Copies without the rows that the errors name, one beside each of their files: file → `NAME.clean.jsonl`.

    Files that are no JSON, and errors that name no row, are passed over.

    Raises:
        DataError: a copy is there already. GraftError: it cannot be written.
    """
    wrong: dict[str, set[int]] = {}
    for error in errors:
        if error.file is not None and error.line is not None:
            wrong.setdefault(error.file, set()).add(error.line)
    made = {}
    for name, numbers in wrong.items():
        file = Path(name)
        sign = _first_sign(file)
        if sign in ("[", "{"):
            copy = file.with_name(f"{file.stem}.clean.jsonl")
            if copy.exists():
                raise DataError("the copy is there already", file=copy, hint="look at it, then move it away")
            write_text(copy, _rows_of_list(file, numbers) if sign == "[" else _lines(file, numbers))
            made[name] = copy
    return made


def _first_sign(file: Path) -> str:
    with open(file, encoding="utf-8-sig") as handle:
        return next((line.lstrip()[0] for line in iter(lambda: handle.readline(4096), "") if line.strip()), "")


def _lines(file: Path, without: Container[int]) -> Iterator[str]:
    with open(file, encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            if number not in without and line.strip():
                yield line if line.endswith("\n") else f"{line}\n"


def _rows_of_list(file: Path, without: Container[int]) -> Iterator[str]:
    for number, row in json_list(file, BadRows("skip")):
        if number not in without:
            yield f"{json.dumps(row, ensure_ascii=False)}\n"
