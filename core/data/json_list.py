"""A JSON list of objects read one object at a time, so that a file larger than memory can be a list too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from core.data.rows import BadRows, not_utf8
from core.errors import DataError

CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")


def json_list(path: str | Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in the list, object) of a file that holds one JSON list; an item that is no object is a bad row.

    Raises:
        DataError: the file holds no list, or is not valid JSON, with the line.
    """
    with open(path, encoding="utf-8-sig") as handle:
        text = _Text(handle, path)
        if text.next_sign() != "[":
            raise DataError("the file holds no list", file=path, expected="[{…}, …]")
        text.at += 1
        number = 0
        while (sign := text.next_sign()) != "]":
            if number and sign != ",":
                after = "an item of the list is followed by neither , nor ]"
                raise text.error(after if sign else "the file ends inside the list")
            text.at += bool(number)
            value, number = text.value(), number + 1
            if isinstance(value, dict):
                yield number, value
            else:
                bad.handle(DataError("not an object", file=path, line=number, got=value, expected="{…}"))
        text.at += 1
        if text.next_sign():
            raise text.error("something follows the list")


class _Text:
    """The part of a file that is looked at: what stands before `at` is dropped when more is read."""

    def __init__(self, handle: TextIO, path: str | Path) -> None:
        self.handle, self.path = handle, path
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.decoder = json.JSONDecoder()

    def next_sign(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read()

    def value(self) -> Any:
        """The value that begins here."""
        self.next_sign()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # what is cut off fails where the text ends, or in a string that has not ended
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    what = f"the file ends inside the list: {error.msg}" if cut else error.msg
                    raise self.error(what, error.pos) from error
            except RecursionError as error:
                raise DataError("JSON nested too deeply to be a row", file=self.path, line=self.line) from error
            else:
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            self._read()

    def error(self, what: str, place: int | None = None) -> DataError:
        line = self.line + self.text.count("\n", 0, self.at if place is None else place)
        return DataError(f"not valid JSON: {what}", file=self.path, line=line)

    def _read(self) -> None:
        self.line += self.text.count("\n", 0, self.at)
        kept = self.text[self.at :]
        try:
            # as much again as is there, so that one long row is not gone through once a chunk
            new = self.handle.read(max(CHUNK, len(kept)))
        except UnicodeDecodeError as error:
            raise not_utf8(self.path) from error
        self.text, self.at, self.ended = kept + new, 0, not new
