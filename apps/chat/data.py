"""Conversations from the layouts that people have them in, all as `ChatExample`s.

Three layouts are read from JSON (a list) or JSONL files: Alpaca's `instruction`, `input`, `output`; ShareGPT's
`conversations` of `from` and `value`; and OpenAI's `messages` of `role` and `content`. A row may add a better and a
worse answer (`chosen`, `rejected`). The reader `auto` looks at the first rows, says which layout it found and why, and
refuses a file of mixed layouts. Nothing here knows of tokenizers or models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.config.registry import Registry
from core.data.rows import BadRows, jsonl
from core.errors import DataError

READERS: Registry[Callable[..., Iterator[Any]]] = Registry("reader")
STAND_INS = {"preferences": "embedded_preferences"}
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
LAYOUTS = {"alpaca": "instruction", "sharegpt": "conversations", "messages": "messages"}
SNIFFED = 50


@dataclass(frozen=True)
class ChatExample:
    """A conversation: (role, text) turns with roles system, user and assistant.

    Args:
        messages: the turns; the last one is the user's when the answer is still to come.
        answer: what the assistant says next, where it is known: what is learnt, and what scores compare with.
        rejected: a worse answer, where one is known.
    """

    messages: tuple[tuple[str, str], ...]
    answer: str | None = None
    rejected: str | None = None
    id: str | None = None


def conversation(row: Mapping[str, Any], layout: str) -> ChatExample:
    """A row of one layout. Raises `DataError` naming the field that is wrong."""
    turns = _alpaca(row) if layout == "alpaca" else _turns(row, LAYOUTS[layout])
    chosen = _answer(row, "chosen")
    if chosen is None and turns and turns[-1][0] == "assistant":
        chosen, turns = turns[-1][1], turns[:-1]
    if not any(role == "user" for role, _ in turns):
        raise DataError("the conversation has no user turn", field=LAYOUTS[layout])
    if turns[-1][0] != "user":
        raise DataError("the assistant speaks twice", field=LAYOUTS[layout])
    expected = ["user", "assistant"] * len(turns)
    spoken = [role for role, _ in turns if role != "system"]
    if spoken != expected[: len(spoken)] or any(role == "system" for role, _ in turns[1:]):
        order = ", ".join(role for role, _ in turns)
        raise DataError("the turns do not alternate", field=LAYOUTS[layout], got=order, expected="user, assistant, …")
    rejected = _answer(row, "rejected")
    label = row.get("id")
    return ChatExample(tuple(turns), chosen, rejected, None if label is None else str(label))


def _alpaca(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    question = _text(row, "instruction")
    more = row.get("input") or ""
    if not isinstance(more, str):
        raise DataError("wrong value", field="input", got=more, expected="a string")
    turns = [("system", row["system"])] if isinstance(row.get("system"), str) and row["system"].strip() else []
    for number, past in enumerate(row.get("history") or []):
        if not (isinstance(past, list) and len(past) == 2 and all(isinstance(t, str) for t in past)):
            raise DataError("wrong value", field=f"history[{number}]", got=past, expected="[question, answer]")
        turns += [("user", past[0]), ("assistant", past[1])]
    turns.append(("user", f"{question}\n\n{more.strip()}" if more.strip() else question))
    if "chosen" not in row:
        turns.append(("assistant", _text(row, "output")))
    return turns


def _turns(row: Mapping[str, Any], field: str) -> list[tuple[str, str]]:
    given = row.get(field)
    if not isinstance(given, list) or not given:
        raise DataError("wrong value", field=field, got=given, expected="a list of turns")
    turns = [_turn(turn, f"{field}[{number}]") for number, turn in enumerate(given)]
    if isinstance(row.get("system"), str) and row["system"].strip() and turns[0][0] != "system":
        turns.insert(0, ("system", row["system"]))
    return turns


def _turn(turn: Any, field: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError("wrong value", field=field, got=turn, expected='{"role": …, "content": …}')
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise DataError("unknown role", field=field, got=role, expected=", ".join(sorted(ROLES)))
    if not isinstance(text, str) or not text.strip():
        raise DataError("empty turn", field=field, got=text, expected="text")
    return ROLES[role], text.strip()


def _answer(row: Mapping[str, Any], name: str) -> str | None:
    """The text of `chosen` or `rejected`: a string, a turn, or a conversation that ends in it."""
    given = row.get(name)
    if given is None:
        return None
    if isinstance(given, list) and given:
        given = given[-1]
    text = _turn(given, name)[1] if isinstance(given, Mapping) else given
    if not isinstance(text, str) or not text.strip():
        raise DataError("empty answer", field=name, got=given, expected="text")
    return text.strip()


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError("empty text", field=name, got=value, expected="text")
    return value.strip()


def rows_of(path: str | Path, split: str | None, on_bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or place in the list, object) of a JSONL file or of a JSON file that holds a list."""
    place = Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else Path(path)
    if not place.is_file():
        raise DataError("file not found", file=place)
    if place.suffix == ".jsonl":
        yield from jsonl(place, on_bad)
        return
    try:
        rows = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"not valid JSON: {error}", file=place) from error
    if not isinstance(rows, list):
        raise DataError("the file holds no list", file=place, got=type(rows).__name__, expected="[{…}, …]")
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            on_bad.handle(DataError("not an object", file=place, line=number, got=row, expected="{…}"))


def sniff(path: str | Path, split: str | None = None) -> str:
    """The layout of a file, from its first rows. Raises `DataError` when they have none or several."""
    found: Counter[str] = Counter()
    for _, row in islice(rows_of(path, split, BadRows("skip")), SNIFFED):
        found.update(name for name, field in LAYOUTS.items() if field in row)
    if len(found) != 1:
        shown = ", ".join(f"{name} ({count})" for name, count in found.most_common()) or "none"
        known = "; ".join(f"{name} has '{field}'" for name, field in LAYOUTS.items())
        what = "rows of several layouts" if found else "no layout that is known"
        raise DataError(f"{what} among the first {SNIFFED}: {shown}", file=path, hint=known)
    return next(iter(found))


def verdict(path: str | Path, split: str | None = None) -> str:
    """One line for a person: the layout and what its first conversation looks like."""
    layout = sniff(path, split)
    for _, row in rows_of(path, split, BadRows("skip")):
        try:
            example = conversation(row, layout)
        except DataError:
            continue
        turns = len(example.messages) + (example.answer is not None)
        pairs = ", with better and worse answers" if example.rejected else ""
        return f"{path}: {layout} (rows have '{LAYOUTS[layout]}'); the first has {turns} turns{pairs}"
    raise DataError("no row could be read", file=path)


def _reader(layout: str | None) -> Callable[..., Iterator[ChatExample]]:
    def read(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ChatExample]:
        chosen = layout or sniff(path, split)
        for number, row in rows_of(path, split, on_bad):
            try:
                yield conversation(row, chosen)
            except DataError as error:
                on_bad.handle(
                    DataError(
                        error.what, file=path, line=number, field=error.field, got=error.got, expected=error.expected
                    )
                    if error.got is None
                    else _placed(error, path, number)
                )

    return read


def _placed(error: DataError, path: str, number: int) -> DataError:
    """The same error with file and line; what it says is kept as it is."""
    placed = DataError(error.what, file=path, line=number, field=error.field, hint=error.hint)
    placed.got, placed.expected = error.got, error.expected
    return placed


for _layout in LAYOUTS:
    READERS.register(_layout)(_reader(_layout))
READERS.register("auto")(_reader(None))


@READERS.register("preferences")
def preferences(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ChatExample]:
    """Any layout whose rows have a better and a worse answer; one without both is a bad row."""
    for number, example in enumerate(_reader(None)(path, split=split, on_bad=on_bad), 1):
        if example.answer is None or example.rejected is None:
            name = "chosen" if example.answer is None else "rejected"
            on_bad.handle(DataError("the row has no such answer", file=path, line=number, field=name))
            continue
        yield example


@READERS.register("embedded")
def embedded(path: str | None = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[ChatExample]:
    """Small questions with exact answers that the project makes itself; split train, dev or test."""
    from apps.chat.arithmetic import questions

    yield from (ChatExample((("user", q),), a, id=str(n)) for n, (q, a, _) in enumerate(questions(split or "train")))


@READERS.register("embedded_preferences")
def embedded_preferences(
    path: str | None = None, *, split: str | None = None, on_bad: Any = None
) -> Iterator[ChatExample]:
    """The same questions with a right and a wrong answer."""
    from apps.chat.arithmetic import questions

    made = questions(split or "train")
    yield from (ChatExample((("user", q),), right, wrong, str(n)) for n, (q, right, wrong) in enumerate(made))


def load_data(
    path: str | Path | None = None, reader: str = "auto", *, split: str | None = None, limit: int | None = None
) -> list[ChatExample]:
    """Read conversations into a list: `load_data("mine.json")`."""
    rows = READERS.get(reader)(path, split=split, on_bad=BadRows("raise"))
    return list(islice(rows, limit))
