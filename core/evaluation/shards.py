"""Evaluation in parts, on several machines: which examples belong to a part, and predictions put back in order.

    mine = shard(examples, "2/4")           # by a hash of each example's id, so that every machine agrees

The parts' predictions are simply written one after the other; their ids say what they belong to.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from core.errors import ConfigError, DataError

Example = TypeVar("Example")


def shard(examples: Sequence[Example], part: str) -> list[Example]:
    """The examples of part i of n, written "i/n" with i from 1. Every example is in one part, of whatever order.

    Raises:
        ConfigError: not such a part. DataError: a part without examples.
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"'{part}' is no part", where="shard", hint="the second of four is 2/4")
    index, count = int(found[1]) - 1, int(found[2])
    found_here = [e for number, e in enumerate(examples) if _hash(getattr(e, "id", None), number) % count == index]
    if not found_here:
        raise DataError(f"part {part} has none of the {len(examples)} examples", hint="take fewer parts")
    return found_here


def _hash(name: str | None, number: int) -> int:
    return int(hashlib.sha256(str(number if name is None else name).encode()).hexdigest()[:8], 16)


def aligned(rows: Sequence[Mapping[str, Any]], examples: Sequence[Any]) -> list[Any]:
    """Predictions in the order of the examples: by their ids where rows and examples share some, else as they come.

    A row is {"prediction": a text or several, "id"?, "texts"?: all samples, where "prediction" is only the best}.

    Raises:
        DataError: an example that no row belongs to, or more than one.
    """
    found = [row.get("texts", row["prediction"]) for row in rows]
    given = [str(row["id"]) for row in rows if row.get("id") is not None]
    names = [str(getattr(e, "id", None)) for e in examples]
    if len(given) < len(rows) or not set(given) & set(names):
        return found
    known: dict[str, list[Any]] = {}
    for name, prediction in zip(given, found):
        known.setdefault(name, []).append(prediction)
    for name, wanted in Counter(names).items():
        there = len(known.get(name, ()))
        if there != wanted:
            hint = "is a part missing?" if there < wanted else "was a part written twice?"
            raise DataError(f"{there} predictions for '{name}', expected {wanted}", field="id", hint=hint)
    return [known[name].pop(0) for name in names]
