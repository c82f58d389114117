"""Questions that a made tool solves, for the small model that is to use it (Cai et al. 2023, LATM)."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.tool_use.tool_store import MadeTool, ToolStore, Worked
from core.data.readers import Readers
from core.data.rows import BadRows, jsonl
from core.errors import DataError

READERS: Readers[Problem] = Readers("worked")
load_problems = READERS.load


@dataclass(frozen=True)
class Problem:
    """A question for a tool.

    Args:
        answer: what it comes to. tool: that solves it. code: a call that gets there, where one is known; it sets `ans`.
    """

    question: str
    answer: str
    tool: MadeTool = field(repr=False)
    code: str | None = None
    id: str | None = None

    @property
    def text(self) -> str:
        """What a tokenizer may be trained on."""
        return f"{self.tool.source}\n{self.question}\n{self.code or ''}"


@READERS.register("worked")
def worked(path: str, *, split: str | None = None, on_bad: BadRows, store: str, tool: str) -> Iterator[Problem]:
    """JSONL of {"question", "answer", "code"?} for the tool `tool` of the folder `store`, tested as it is loaded."""
    made = ToolStore(store).load(tool)
    file = Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else Path(path)
    for number, row in jsonl(file, on_bad):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in ("question", "answer")):
            on_bad.handle(DataError("a row has a question and an answer", file=file, line=number, got=row))
            continue
        yield Problem(row["question"], row["answer"], made, row.get("code"), str(number))


@READERS.register("bbh")
def bbh(path: str, *, split: str | None = None, on_bad: BadRows, store: str, tool: str) -> Iterator[Problem]:
    """A task of BIG-Bench Hard (Suzgun et al. 2022), `{split}.json`, without the ten examples that a maker may see."""
    made, file = ToolStore(store).load(tool), Path(path) / f"{split or tool}.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["examples"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"not a task of BIG-Bench Hard: {error!r}", file=file) from error
    for number, row in enumerate(rows[10:], 10):
        yield Problem(row["input"], str(row["target"]), made, id=str(number))


CLOCK = """def minutes(start, end):
    first, last = (60 * int(time[:2]) + int(time[3:]) for time in (start, end))
    return (last - first) % 1440
"""
ASKS = (
    "It is {a}. The train leaves at {b}. How many minutes are left?",
    "The shop opens at {b} and it is {a} now. How many minutes do I wait?",
    "The film begins at {a} and ends at {b}. How many minutes does it take?",
    "He woke at {b} after going to bed at {a}. How many minutes did he sleep?",
    "From {a} to {b}: how many minutes?",
)


def _asked(rng: random.Random) -> Worked:
    first, last = rng.randrange(1440), rng.randrange(1440)
    a, b = (f"{at // 60:02}:{at % 60:02}" for at in (first, last))
    return Worked(rng.choice(ASKS).format(a=a, b=b), str((last - first) % 1440), f'ans = minutes("{a}", "{b}")\n')


@functools.cache
def clock() -> MadeTool:
    """The tool of the shipped problems."""
    rng = random.Random("clock-tests")
    return MadeTool("clock", "Minutes between two times of a day.", CLOCK, tuple(_asked(rng) for _ in range(3)))


@READERS.register("embedded")
def embedded(path: str | None = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[Problem]:
    """Questions about two times of a day, in either order, with their calls."""
    rng = random.Random(f"clock-{split or 'train'}")
    for number in range({"train": 1000}.get(split or "train", 100)):
        made = _asked(rng)
        yield Problem(made.question, made.answer, clock(), made.code, str(number))
