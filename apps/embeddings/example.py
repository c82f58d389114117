"""What an embedding example is, and its simple JSONL form with every field's type checked.

One class covers what the field trains and measures on; `kind` says which of its fields are filled:
triplets (text, pos, neg), graded pairs (text, text2, score), labelled texts (text, label), and search collections
(documents with an id; queries with the ids of relevant documents).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import DataError, nearest

Kind = Literal["triplet", "pair", "labelled", "query", "document"]


@dataclass(frozen=True)
class EmbeddingExample:
    """A text and what it should be near to.

    Args:
        text: query, first sentence, or the text itself. pos, neg: texts that answer it and texts that do not.
        text2, score: a second sentence and how similar both are, 0 to 1. label: class of the text.
        relevant: (document id, grade) of a query. id: of a query or a document. task: instruction of the queries.
    """

    text: str
    pos: tuple[str, ...] = ()
    neg: tuple[str, ...] = ()
    text2: str | None = None
    score: float | None = None
    label: str | None = None
    relevant: tuple[tuple[str, float], ...] | None = None
    id: str | None = None
    task: str = ""

    @property
    def kind(self) -> Kind:
        if self.pos:
            return "triplet"
        if self.text2 is not None:
            return "pair"
        if self.label is not None:
            return "labelled"
        return "document" if self.relevant is None else "query"

    def __str__(self) -> str:
        return "\n".join([self.text, *self.pos, *self.neg, *([self.text2] if self.text2 else [])])


FIELDS = tuple(EmbeddingExample.__dataclass_fields__)


def to_jsonl(examples: Iterable[EmbeddingExample]) -> str:
    """The simple JSONL form, which the `jsonl` reader reads back to equal examples."""
    lines = []
    for example in examples:
        row = {name: value for name, value in asdict(example).items() if value not in (None, (), "")}
        if example.relevant is not None:
            row["relevant"] = dict(example.relevant)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def example_from(
    row: Any, *, task: str = "", file: str | Path | None = None, line: int | None = None
) -> EmbeddingExample:
    """An `EmbeddingExample` from a dictionary in the simple JSONL form; "query" may stand for "text".

    Raises:
        DataError: no text, an unknown field, a field of another type, a score outside 0 to 1.
    """
    if not isinstance(row, dict):
        raise DataError("the row is not an object", file=file, line=line, got=row, expected='{"text": …}')
    if "query" in row and "text" in row:
        raise DataError("two names for one text", file=file, line=line, field="query", expected="text or query")
    row = {"text" if name == "query" else name: value for name, value in row.items()}
    for name in set(row) - set(FIELDS) - {"meta", "prediction"}:
        hint = nearest(name, FIELDS) or f"known: {', '.join(FIELDS)}"
        raise DataError("unknown field", file=file, line=line, field=name, hint=hint)

    def bad(name: str, expected: str) -> DataError:
        return DataError("wrong value", file=file, line=line, field=name, got=row.get(name), expected=expected)

    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise bad("text", "a text that is not empty")
    lists = {}
    for name in ("pos", "neg"):
        given = row.get(name) or []
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, (list, tuple)) or not all(isinstance(t, str) and t.strip() for t in given):
            raise bad(name, "a list of texts that are not empty")
        lists[name] = tuple(given)
    if row.get("text2") is not None and not (isinstance(row["text2"], str) and row["text2"].strip()):
        raise bad("text2", "a text that is not empty")
    score = row.get("score")
    if score is not None and (isinstance(score, bool) or not (isinstance(score, (int, float)) and 0 <= score <= 1)):
        raise bad("score", "a number from 0 to 1")
    relevant = row.get("relevant")
    if isinstance(relevant, dict):
        relevant = tuple(relevant.items())
    if relevant is not None and not (
        isinstance(relevant, (list, tuple))
        and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], (int, float)) and pair[1] >= 0
            for pair in relevant
        )
    ):
        raise bad("relevant", '{"document id": grade from 0 on}')
    for field in ("id", "label"):
        if isinstance(row.get(field), (list, dict)):
            raise bad(field, "a text or a number")
    label, name, task = row.get("label"), row.get("id"), row.get("task") or task
    if not isinstance(task, str):
        raise bad("task", "a string")
    return EmbeddingExample(
        text,
        lists["pos"],
        lists["neg"],
        row.get("text2"),
        None if score is None else float(score),
        None if label is None else str(label),
        None if relevant is None else tuple((str(a), float(b)) for a, b in relevant),
        None if name is None else str(name),
        task,
    )
