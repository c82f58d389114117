"""Chrysalis: functions of HLS benchmarks with descriptions of up to several bugs each.

Read from the repository's folders (`Suite/Func/Source_Code/*.cpp`, `Bugs/bug_TYPE[_TYPE].txt`) or from `bugs.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.reading import fields, json_lines, read_text, reject, required
from core.errors import DataError

LOGIC = {
    "OOB": "access outside an array", "INIT": "value that was never set", "SHFT": "wrong shift",
    "INF": "loop without end", "USE": "wrong type or sign", "MLU": "wrong use of a loop or index",
    "ZERO": "wrong constant or reset to zero", "BUF": "wrong buffer",
}  # fmt: skip
PRAGMA = {
    "APT": "wrong type of array partition", "FND": "partition factor that does not divide",
    "DID": "partition of a dimension that is not there", "DFP": "dataflow where it is not allowed",
    "IDAP": "interface that does not fit the access pattern", "RAMB": "wrong memory bundle",
    "SMA": "memory interface on a scalar", "AMS": "scalar interface on an array", "MLP": "pipeline on nested loops",
    "ILNU": "unrolling that does not fit",
}  # fmt: skip
TYPES = {**LOGIC, **PRAGMA}


@dataclass(frozen=True)
class Edit:
    """One planted error: its type, and the text it replaces by what."""

    kind: str
    original: str
    faulty: str


@dataclass(frozen=True)
class HlsBug:
    """A bug description: the function it belongs to, its source, and the edits that make it."""

    suite: str
    design: str
    source: str
    kinds: tuple[str, ...]
    edits: tuple[Edit, ...]

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.design}/{'_'.join(self.kinds)}"


def read_bugs(path: str | Path, *, on_bad: Any = None) -> Iterator[HlsBug]:
    """The bugs of a Chrysalis checkout, or of a `bugs.jsonl`.

    Raises:
        DataError: a file or row that is not as it should be, unless `on_bad` takes it.
    """
    place = Path(path)
    if place.is_dir() and not (place / "bugs.jsonl").is_file():
        yield from _folders(place, on_bad)
        return
    file = required(path, "bugs.jsonl")
    for number, row in json_lines(file, on_bad):
        try:
            suite, design = fields(row, ("suite", "design"), file, number)
            source = "\n".join(str(text) for text in (row.get("sources") or {}).values())
            for bug in row.get("bugs") or []:
                yield _bug(suite, design, source, tuple(bug["types"]), bug["text"], file, number)
        except (KeyError, TypeError) as error:
            reject(on_bad, DataError(f"the row lacks {error}", file=file, line=number))
        except DataError as error:
            reject(on_bad, error)


def _folders(folder: Path, on_bad: Any) -> Iterator[HlsBug]:
    found = sorted(folder.rglob("Bugs/bug_*.txt"))
    if not found:
        raise DataError(
            "no bugs", file=folder, expected="Suite/Func/Source_Code/*.cpp and Suite/Func/Bugs/bug_TYPE.txt"
        )
    for file in found:
        function = file.parent.parent
        source = "\n".join(read_text(p) for p in sorted((function / "Source_Code").glob("*.cpp")))
        kinds = tuple(file.stem.removeprefix("bug_").split("_"))
        try:
            yield _bug(function.parent.name, function.name, source, kinds, read_text(file), file, 1)
        except DataError as error:
            reject(on_bad, error)


def _bug(suite: str, design: str, source: str, kinds: tuple[str, ...], text: str, file: Path, line: int) -> HlsBug:
    try:
        described = json.loads(text)["Error Specification"]
        edits = tuple(Edit(str(e["Error Type"]), e["Original Code"], e["Faulty Code"]) for e in described)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"not a bug description: {error}", file=file, line=line, got=text) from error
    unknown = [kind for kind in kinds if kind not in TYPES]
    if unknown:
        raise DataError("unknown bug type", file=file, line=line, got=unknown[0], expected=", ".join(TYPES))
    return HlsBug(suite, design, source, kinds, edits)
