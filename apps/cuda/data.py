"""The readers: KernelBench in its own layouts, generated operators, and a simple JSONL.

A reader is a generator of `CudaExample`: `reader(path, *, split=None, on_bad=None, …)`. It names file, line and field
of whatever is wrong and hands malformed rows to `on_bad`. Nothing here runs a reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apps.cuda.example import CudaExample, check_reference, example_from, to_jsonl
from core.data.readers import Readers
from core.data.reading import examples_of, fields, json_lines, read_text, reject, required
from core.errors import ConfigError, DataError

__all__ = ["READERS", "STAND_INS", "CudaExample", "example_from", "load_data", "published_times", "to_jsonl"]

READERS: Readers[CudaExample] = Readers()
load_data = READERS.load
STAND_INS = {"jsonl": "taskgen", "kernelbench": "taskgen"}
LEVELS = ("1", "2", "3", "4")


@READERS.register("jsonl")
def jsonl(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[CudaExample]:
    """One object a line: `{"reference", "spec"?, "solution"?, "sizes"?, "tolerance"?, "id"?, …}`."""
    yield from examples_of(path, split, on_bad, example_from)


@READERS.register("kernelbench")
def kernelbench(
    path: str | Path, *, split: str | None = None, on_bad: Any = None, problem_ids: Sequence[int] | None = None
) -> Iterator[CudaExample]:
    """KernelBench (Ouyang et al. 2025): the repository, its `KernelBench` folder, one `levelN`, or `problems.jsonl`.

    Args:
        split: a level, "1" to "4"; None takes all that are there. problem_ids: numbers within their level.
    """
    level = None if split is None else str(split).removeprefix("level")
    if level is not None and level not in LEVELS:
        raise ConfigError(f"unknown level '{split}'", hint=f"KernelBench has the levels {', '.join(LEVELS)}")
    wanted = None if problem_ids is None else set(problem_ids)
    place = Path(path)
    inner = place / "KernelBench"
    if inner.is_dir():
        place = inner
    rows = (
        _folders(place, level) if place.is_dir() and not (place / "problems.jsonl").is_file() else _rows(path, on_bad)
    )
    for file, line, row in rows:
        try:
            number = row.get("problem_id")
            if isinstance(number, bool) or not isinstance(number, int):
                raise DataError(
                    "wrong value", file=file, line=line, field="problem_id", got=number, expected="a number"
                )
            if (level is not None and str(row.get("level")) != level) or (wanted is not None and number not in wanted):
                continue
            name, source = fields(row, ("name", "reference_pytorch"), file, line or 1)
            check_reference(source, file=file, line=line)
            at = str(row.get("level", ""))
            yield CudaExample(source, level=at, name=name, family="kernelbench", id=f"level{at}/{number}")
        except DataError as error:
            reject(on_bad, error)


def _rows(path: str | Path, on_bad: Any) -> Iterator[tuple[Path, int | None, dict]]:
    file = required(path, "problems.jsonl")
    for number, row in json_lines(file, on_bad):
        yield file, number, row


def _folders(place: Path, level: str | None) -> Iterator[tuple[Path, int | None, dict]]:
    folders = sorted(p for p in place.iterdir() if re.fullmatch(r"level[1-4]", p.name) and p.is_dir())
    if re.fullmatch(r"level[1-4]", place.name):
        folders = [place]
    if not folders:
        raise DataError("no problems", file=place, expected="level1/1_Square_matrix_multiplication_.py, …")
    for folder in folders:
        at = folder.name.removeprefix("level")
        if level is not None and level != at:
            continue
        found = ((re.match(r"(\d+)_", p.name), p) for p in folder.glob("*.py"))
        for number, file in sorted((int(m[1]), p) for m, p in found if m):
            yield file, None, {
                "level": at, "problem_id": number, "name": file.stem, "reference_pytorch": read_text(file)
            }  # fmt: skip


def published_times(path: str | Path, machine: str, baseline: str = "torch") -> dict[str, float]:
    """Milliseconds that KernelBench publishes for a machine: "level1/1_Square…" → mean.

    Args:
        path: the folder with `timing/`, or `results/timing` of the repository. machine: e.g. "H100_Modal".

    Raises:
        DataError: no such machine or baseline; the message lists those there are.
    """
    import json

    root = next((p for p in (Path(path) / "timing", Path(path) / "results" / "timing") if p.is_dir()), Path(path))
    file = root / machine / f"baseline_time_{baseline}.json"
    if not file.is_file():
        there = sorted(str(p.relative_to(root)) for p in root.glob("*/baseline_time_*.json"))
        raise DataError("no such timings", file=file, hint=f"there are: {', '.join(there) or 'none'}")
    found = {}
    for level, rows in json.loads(read_text(file)).items():
        for name, row in rows.items():
            found[f"{level}/{name.removesuffix('.py')}"] = float(row["mean"])
    return found


@READERS.register("taskgen")
def taskgen(
    path: str | Path | None = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    size: int = 1000,
    seed: int = 0,
    families: list[str] | None = None,
) -> Iterator[CudaExample]:
    """Operators made by `apps.cuda.taskgen`: split train, or unseen_params, unseen_paraphrase, unseen_family."""
    from apps.cuda.taskgen import tasks

    yield from tasks(size, split=split or "train", seed=seed, families=families)
