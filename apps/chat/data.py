"""Conversations from the layouts that people have them in, all as `ChatExample`s.

JSON lists and JSON lines are read, whatever the file is called, in five layouts: Alpaca's `instruction`, `input`,
`output`; ShareGPT's `conversations` of `from` and `value`; OpenAI's `messages` of `role` and `content`; a `prompt` with
its `completion`; and pairs of whole conversations, `chosen` and `rejected`, which every other layout may bring as well.
The reader `auto` looks at the first rows, says which layout it found and why, and refuses a file of mixed layouts.
Nothing here knows of tokenizers or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.data.json_list import json_list
from core.data.readers import Readers
from core.data.reading import required
from core.data.rows import BadRows, jsonl, not_utf8
from core.errors import DataError

READERS: Readers[ChatExample] = Readers("auto")
load_data = READERS.load
STAND_INS = {"preferences": "embedded_preferences"}
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
LAYOUTS = {
    "alpaca": "instruction", "sharegpt": "conversations", "messages": "messages", "prompt": "prompt", "pairs": "chosen",
}  # fmt: skip
TABLES = {".parquet": "parquet", ".arrow": "feather", ".csv": "csv", ".tsv": "table", ".xlsx": "excel"}
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

    def __str__(self) -> str:
        """What is said, turn after turn: the text that a tokenizer or a number format is fitted to."""
        return "\n".join([*(text for _, text in self.messages), *([self.answer] if self.answer else [])])


def conversation(row: Mapping[str, Any], layout: str) -> ChatExample:
    """A row of one layout. Raises `DataError` naming the field that is wrong."""
    field = LAYOUTS[layout]
    if field not in row:
        own = _layouts(row)
        hint = f"it is a row of {own[0]}: use the reader {own[0]}, or auto" if own else None
        raise DataError(
            f"the row has no '{field}'", field=field, got=list(row), expected=f"a row of {layout}", hint=hint
        )
    turns = _alpaca(row) if layout == "alpaca" else _prompt(row) if layout == "prompt" else _turns(row, field)
    chosen = _answer(row, "chosen")
    if turns[-1][0] == "assistant" and chosen in (None, turns[-1][1]):
        chosen, turns = turns[-1][1], turns[:-1]
    if not any(role == "user" for role, _ in turns):
        raise DataError("the conversation has no user turn", field=field)
    if turns[-1][0] != "user":
        raise DataError("the assistant speaks twice", field=field)
    expected = ["user", "assistant"] * len(turns)
    spoken = [role for role, _ in turns if role != "system"]
    if spoken != expected[: len(spoken)] or any(role == "system" for role, _ in turns[1:]):
        order = ", ".join(role for role, _ in turns)
        raise DataError("the turns do not alternate", field=field, got=order, expected="user, assistant, …")
    rejected = _answer(row, "rejected")
    if isinstance(row.get("rejected"), list) and len(row["rejected"]) > 1:
        own = [turn for turn in _turns(row, "rejected")[:-1] if turn[0] != "system"]
        if own != [turn for turn in turns if turn[0] != "system"]:
            raise DataError(
                "the worse answer is to another question", field="rejected", got=own[-1][1] if own else None
            )
    label = row.get("id")
    return ChatExample(tuple(turns), chosen, rejected, None if label is None else str(label))


def _alpaca(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    question = _text(row, "instruction")
    more = row.get("input") or ""
    if not isinstance(more, str):
        raise DataError("wrong value", field="input", got=more, expected="a string")
    turns = [("system", row["system"])] if isinstance(row.get("system"), str) and row["system"].strip() else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError("wrong value", field="history", got=history, expected="a list of [question, answer]")
    for number, past in enumerate(history):
        if not (isinstance(past, list) and len(past) == 2 and all(isinstance(t, str) for t in past)):
            raise DataError("wrong value", field=f"history[{number}]", got=past, expected="[question, answer]")
        turns += [("user", past[0]), ("assistant", past[1])]
    turns.append(("user", f"{question}\n\n{more.strip()}" if more.strip() else question))
    if "chosen" not in row:
        turns.append(("assistant", _text(row, "output")))
    return turns


def _prompt(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A prompt as text or as turns, and its completion likewise, where the row has no better and worse answer."""
    turns = _turns(row, "prompt") if isinstance(row["prompt"], list) else [("user", _text(row, "prompt"))]
    if isinstance(row.get("system"), str) and row["system"].strip() and turns[0][0] != "system":
        turns.insert(0, ("system", row["system"]))
    completion = _answer(row, "completion")
    return [*turns, ("assistant", completion)] if completion and "chosen" not in row else turns


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
    if not isinstance(role, str) or role not in ROLES:
        raise DataError("unknown role", field=field, got=role, expected=", ".join(sorted(ROLES)))
    if not isinstance(text, str):
        raise DataError("the turn is no text", field=field, got=text, expected="a string")
    if not text.strip():
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
    if not isinstance(value, str):
        raise DataError("wrong value", field=name, got=value, expected="a string")
    if not value.strip():
        raise DataError("empty text", field=name, got=value, expected="text")
    return value.strip()


def file_of(path: str | Path | None, split: str | None) -> Path:
    """The file, or the one that a folder has for the split (train by default)."""
    return required(path, f"{split or 'train'}.jsonl", f"{split or 'train'}.json")


def rows_of(path: str | Path | None, split: str | None, on_bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or place in the list, object) of a file of JSON lines, or of one that holds a JSON list."""
    place = file_of(path, split)
    if place.suffix in TABLES:
        reads = f"pandas.read_{TABLES[place.suffix]}(…)"
        hint = f"write its rows as JSON lines: {reads}.to_json('rows.jsonl', orient='records', lines=True)"
        raise DataError(f"conversations are read from JSON, this is a {place.suffix} file", file=place, hint=hint)
    try:
        with open(place, encoding="utf-8-sig") as handle:
            first = ""
            while not first and (text := handle.read(4096)):
                first = text.lstrip()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=place) from error
    except UnicodeDecodeError as error:
        raise not_utf8(place) from error
    if not first:
        raise DataError("the file is empty", file=place)
    # an object over several lines is no line of JSON
    one_a_line = not first.startswith("[") and first.partition("\n")[0].rstrip() != "{"
    yield from jsonl(place, on_bad) if one_a_line else json_list(place, on_bad)


def sniff(path: str | Path | None, split: str | None = None) -> str:
    """The layout of a file, from its first rows. Raises `DataError` when they have none or several."""
    found: Counter[str] = Counter()
    row: dict[str, Any] | None = None
    rows = islice(rows_of(path, split, BadRows("skip")), SNIFFED)
    for _, row in rows:
        found.update(_layouts(row))
    known = "; ".join(f"{name} has '{field}'" for name, field in LAYOUTS.items())
    if row is None:
        raise DataError("no row is a JSON object", file=path, hint="a JSON list, or an object a line: JSON lines")
    if not found:
        raise DataError("no layout that is known", file=path, got=", ".join(map(str, row)), expected=known)
    if len(found) > 1:
        shown = ", ".join(f"{name} ({count})" for name, count in found.most_common())
        raise DataError(f"rows of several layouts among the first {SNIFFED}: {shown}", file=path, hint=known)
    return next(iter(found))


def _layouts(row: Mapping[str, Any]) -> list[str]:
    """The layouts that a row may be of. A prompt or pairs beside a conversation only repeat it."""
    own = [name for name in ("alpaca", "sharegpt", "messages") if LAYOUTS[name] in row]
    return own or [name for name in ("prompt", "pairs") if LAYOUTS[name] in row][:1]


def verdict(path: str | Path | None, split: str | None = None) -> str:
    """A few words for a person: the layout, and what the first conversation looks like."""
    layout = sniff(path, split)
    for _, row in rows_of(path, split, BadRows("skip")):
        try:
            example = conversation(row, layout)
        except DataError:
            continue
        turns = len(example.messages) + (example.answer is not None)
        pairs = ", with better and worse answers" if example.rejected else ""
        return f"{layout} (rows have '{LAYOUTS[layout]}'), the first has {turns} turns{pairs}"
    raise DataError("no row could be read", file=path)


def _reader(layout: str | None) -> Callable[..., Iterator[ChatExample]]:
    def read(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ChatExample]:
        return (example for _, example in _numbered(path, layout, split, on_bad))

    return read


def _numbered(path: str, layout: str | None, split: str | None, on_bad: BadRows) -> Iterator[tuple[int, ChatExample]]:
    layout = layout or sniff(path, split)
    for number, row in rows_of(path, split, on_bad):
        try:
            yield number, conversation(row, layout)
        except DataError as error:
            on_bad.handle(_placed(error, file_of(path, split), number))


def _placed(error: DataError, path: Path, number: int) -> DataError:
    """The same error with file and line; what it says is kept as it is."""
    placed = DataError(error.what, file=path, line=number, field=error.field, hint=error.hint)
    placed.got, placed.expected = error.got, error.expected
    return placed


for _layout in LAYOUTS:
    READERS.register(_layout)(_reader(_layout))
_auto: Any = READERS.register("auto")(_reader(None))
_auto.verdict = verdict


@READERS.register("preferences")
def preferences(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ChatExample]:
    """Any layout whose rows have a better and a worse answer; a row without both is a bad one."""
    for number, example in _numbered(path, None, split, on_bad):
        missing = next((n for n, text in (("chosen", example.answer), ("rejected", example.rejected)) if not text), "")
        if missing:
            on_bad.handle(DataError("the row has no such answer", file=path, line=number, field=missing))
        elif example.answer == example.rejected:
            what = "the better and the worse answer are the same"
            on_bad.handle(DataError(what, file=path, line=number, field="rejected", got=example.rejected))
        else:
            yield example


preferences.verdict = verdict  # type: ignore[attr-defined]


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
