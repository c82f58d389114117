"""Answers with code in them: `<python>…</python>` where a calculation helps, `<result>…</result>` for what it printed.

The form is ToolBridge's (Jin et al. 2024). What the assistant writes is learnt, code included; a result comes from the
interpreter and is only given. The readers open ToolBridge's JSON, worked arithmetic, and small tasks that ship.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.readers import Readers
from core.data.reading import json_lines, required
from core.data.rows import BadRows
from core.data.segments import Segment
from core.errors import DataError

READERS: Readers[CodedAnswer] = Readers("toolbridge")
load_answers = READERS.load
STAND_INS: dict[str, str] = {}
OPEN, CLOSE, RESULT, ENDED = "<python>", "</python>", "<result>", "</result>"
_MARK = re.compile("|".join(map(re.escape, (OPEN, CLOSE, RESULT, ENDED))))
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class CodedAnswer:
    """A question and its answer.

    Args:
        answer: the text, with or without code and results. gold: what the answer comes to, where it is known.
        samples: what other solutions of the question came to, for a check of consistency.
    """

    question: str
    answer: str
    gold: str | None = None
    id: str | None = None
    samples: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What a tokenizer may be trained on."""
        return f"{self.question}\n{self.answer}"


@dataclass(frozen=True)
class Piece:
    """A part of an answer: kind is text, code or result; `text` is what stands between the marks."""

    kind: str
    text: str

    def written(self) -> str:
        if self.kind == "code":
            return f"{OPEN}{self.text}{CLOSE}"
        return f"{RESULT}{self.text}{ENDED}" if self.kind == "result" else self.text


def pieces(answer: str) -> list[Piece]:
    """The parts of an answer in order.

    Raises:
        DataError: a mark without its partner, or a result that does not stand behind code; with its place.
    """
    found: list[Piece] = []
    kind, start = "text", 0
    for mark in _MARK.finditer(answer):
        opens = mark[0] in (OPEN, RESULT)
        wanted = {"text": (OPEN, RESULT), "code": (CLOSE,), "result": (ENDED,)}[kind]
        if mark[0] not in wanted:
            raise DataError(f"'{mark[0]}' has no partner", field=f"character {mark.start()}", got=mark[0])
        if kind != "text" or mark.start() > start:
            found.append(Piece(kind, answer[start : mark.start()]))
        if mark[0] == RESULT and (not found or found[-1].kind != "code"):
            raise DataError("a result stands right behind its code", field=f"character {mark.start()}")
        kind, start = ({OPEN: "code", RESULT: "result"}[mark[0]] if opens else "text"), mark.end()
    if kind != "text":
        raise DataError(f"the last {kind} is not closed", field=f"character {start}", got=answer[start : start + 40])
    if answer[start:]:
        found.append(Piece("text", answer[start:]))
    return found


def written(parts: list[Piece]) -> str:
    return "".join(piece.written() for piece in parts)


def plain(answer: str) -> str:
    """The answer without code and results."""
    return "".join(piece.text for piece in pieces(answer) if piece.kind == "text")


TEMPLATES = {"plain": ("Question: {}\nAnswer:", " ", "\n\n"), "chatml": (
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>")}  # fmt: skip
"""Prompt, what stands before an answer, and where a free answer ends."""


def prompt(question: str, template: str = "plain") -> Segment:
    return Segment(TEMPLATES[template][0].format(question))


def row_of(example: CodedAnswer, template: str = "plain") -> list[Segment]:
    """The question and the results as given, text and code as learnt."""
    _, lead, end = TEMPLATES[template]
    row, learnt = [prompt(example.question, template)], lead
    for piece in pieces(example.answer):
        if piece.kind == "result":
            row += [Segment(learnt, "assistant", True)] if learnt else []
            row, learnt = [*row, Segment(piece.written(), "tool")], ""
        else:
            learnt += piece.written()
    learnt += end if template == "chatml" else ""
    return [*row, Segment(learnt, "assistant", True)] if learnt else row


def numbers(text: str) -> list[float]:
    """All numbers in a text; commas between digits are left out."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def comes_to(answer: str) -> str | None:
    """What an answer comes to: the first number behind "answer is", else the last number of its text."""
    text = plain(answer) if OPEN in answer or RESULT in answer else answer
    _, marked, tail = text.rpartition("answer is")
    found = _NUMBER.findall(tail) if marked else []
    found = found[:1] or _NUMBER.findall(text)[-1:]
    return found[0].replace(",", "") if found else None


def reaches(answer: str, gold: str) -> bool:
    """Whether an answer comes to `gold`: the same number, or the same words behind "answer is"."""
    wanted, final = numbers(gold), comes_to(answer)
    if wanted:
        return final is not None and abs(float(final) - wanted[0]) <= 1e-6 * max(1.0, abs(wanted[0]))
    tail = (plain(answer) if OPEN in answer else answer).rpartition("answer is")[2]
    return re.search(rf"(?<!\w){re.escape(gold.strip())}(?!\w)", tail, re.I) is not None


@READERS.register("toolbridge")
def toolbridge(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[CodedAnswer]:
    """ToolBridge's rows as JSON or JSONL: {"messages": [user, assistant]} or {"question", "answer", "gold"?}.

    Raises:
        DataError: a pickle, which runs code when it is opened.
    """
    place = Path(path)
    if place.suffix in (".pkl", ".pickle", ".pt"):
        hint = 'where you trust it, write its rows as JSONL: {"question": …, "answer": …}'
        raise DataError("a pickle runs code when it is opened, and is not read", file=place, hint=hint)
    file = required(place, f"{split or 'train'}.jsonl", f"{split or 'train'}.json")
    for number, row in json_lines(file, on_bad):
        try:
            yield _row(row, str(number))
        except DataError as error:
            on_bad.handle(DataError(error.what, file=file, line=number, field=error.field, hint=error.hint))


def _row(row: Mapping[str, Any], name: str) -> CodedAnswer:
    if isinstance(row.get("messages"), list):
        said = {m.get("role"): str(m.get("content") or "") for m in row["messages"] if isinstance(m, Mapping)}
        row = {**row, "question": said.get("user"), "answer": said.get("assistant")}
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"no {field}", field=field, got=row.get(field))
    pieces(row["answer"])
    gold = row.get("gold")
    samples = tuple(map(str, row.get("samples") or ()))
    return CodedAnswer(row["question"], row["answer"], None if gold is None else str(gold), name, samples)


@READERS.register("worked")
def worked(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[CodedAnswer]:
    """Worked arithmetic as in LLM-Adapters (Hu et al. 2023): {"instruction", "output", "answer"} rows."""
    file = required(path)
    for number, row in enumerate(json.loads(file.read_text(encoding="utf-8")), 1):
        try:
            text = str(row["output"]).strip().removeprefix("A:").strip()
            made = {"question": row["instruction"], "answer": text, "gold": row["answer"]}
            yield _row(made, str(number))
        except (KeyError, DataError) as error:
            on_bad.handle(DataError(getattr(error, "what", f"no {error}"), file=file, field=f"[{number - 1}]"))


SHOPS = (
    ("A shelf holds {a} boxes with {b} pens each. How many pens are there?", "{a} * {b}"),
    ("Ana had {a} stamps and got {b} more. How many has she now?", "{a} + {b}"),
    ("Of {a} seats {b} are taken. How many are free?", "{a} - {b}"),
    ("A train goes {a} km an hour for {b} hours. How far does it get?", "{a} * {b}"),
)


@READERS.register("embedded")
def embedded(path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[CodedAnswer]:
    """Small calculations that the project makes, worked in words."""
    rng = random.Random(f"shops-{split or 'train'}")
    for number in range({"train": 2000}.get(split or "train", 200)):
        asked, sum_ = rng.choice(SHOPS)
        a, b = rng.randint(20, 99), rng.randint(2, 19)
        shown = sum_.format(a=a, b=b)
        left, sign, right = shown.split()
        value = {"*": int(left) * int(right), "+": int(left) + int(right), "-": int(left) - int(right)}[sign]
        text = f"That is {shown} = {value}. The answer is {value}."
        yield CodedAnswer(asked.format(a=a, b=b), text, str(value), str(number))
