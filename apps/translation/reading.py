"""Reading text files line by line, with the place of whatever is wrong, and refusing text that was tokenised.

Lines end at LF only, .gz is read like plain text, and a malformed line goes to `on_bad` (anything with
`handle(DataError)`; None raises). This module knows nothing of layouts or languages.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from core.data.reading import reject
from core.errors import DataError

T = TypeVar("T")


def existing(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def required(path: str | Path | None) -> Path:
    if path is None:
        raise DataError("the reader needs a path", hint="set path: in the source")
    found = existing(Path(path))
    if found is None:
        raise DataError("file not found", file=path)
    return found


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def count_lines(file: Path) -> int:
    count, last = 0, b"\n"
    with _open(file) as handle:
        while block := handle.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def lines(file: Path, on_bad: Any) -> Iterator[tuple[int, str]]:
    """Numbered lines, cut only at LF: Unicode's other line separators occur inside sentences."""
    try:
        with _open(file) as handle:
            for number, raw in enumerate(handle, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    reject(on_bad, DataError(f"not UTF-8: {error.reason}", file=file, line=number, got=raw[:40]))
                    continue
                yield number, text
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read: {error}", file=file) from error


def json_rows(file: Path, on_bad: Any) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a JSON list (numbered from 1) or of JSON lines; blank lines are passed over."""
    with _open(file) as handle:
        as_list = handle.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    if as_list:
        with _open(file) as handle:
            try:
                rows = json.loads(handle.read().decode("utf-8-sig"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"not valid JSON: {error}", file=file, line=getattr(error, "lineno", None)) from error
        yield from enumerate(rows, 1)
        return
    for number, line in lines(file, on_bad):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                reject(on_bad, DataError(f"not valid JSON: {error.msg}", file=file, line=number, got=line))
                continue
            yield number, row


_TOKENISED = re.compile(r"\S [.,](\s|$)|&(apos|quot|#\d+);|@-@|@@(\s|$)|\S n't\b")
# Latin, Greek, Cyrillic, Armenian. Georgian has capitals in Unicode that ordinary text does not use.
_CASED = re.compile(r"[A-Za-z\u00c0-\u024f\u0370-\u052f\u0531-\u0587]")
_SAMPLE = 200


def detokenised(rows: Iterator[T], file: Path, allowed: bool) -> Iterator[T]:
    """Pass rows on after a look at the first 200; refuse text that is tokenised or lowercased."""
    if allowed:
        yield from rows
        return
    head = list(islice(rows, _SAMPLE))
    for side in ("src", "tgt"):
        texts = [text for row in head if (text := getattr(row, side))]
        marked = [text for text in texts if _TOKENISED.search(text)]
        cased = [text for text in texts if _CASED.search(text)]
        lowered = [text for text in cased if text == text.lower()]
        for found, out_of, share, word in ((marked, texts, 0.25, "tokenised"), (lowered, cased, 0.95, "lowercased")):
            if len(out_of) >= 8 and len(found) > share * len(out_of):
                raise DataError(
                    f"the {'source' if side == 'src' else 'target'} text looks {word}: "
                    f"{len(found)} of the first {len(out_of)} rows",
                    file=file,
                    field=side,
                    got=found[0],
                    hint="use the detokenised, cased text, or set allow_tokenised: true",
                )
    yield from head
    yield from rows
