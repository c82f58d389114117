"""Putting a described bug into its source: where the text matches exactly, else where it does without white space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from apps.rtl.hls.dataset import Edit, HlsBug

How = Literal["exact", "normalised", "unmatched"]


@dataclass(frozen=True)
class Injected:
    """A bug in place.

    Args:
        how: exact, normalised when white space had to be passed over, unmatched when an edit has no place.
        code: the faulty source; the original where unmatched. lines: the first line of each edit, from 1.
        missing: the text that was not found.
    """

    bug: HlsBug
    how: How
    code: str
    lines: tuple[int, ...] = ()
    missing: str = ""


def inject(bug: HlsBug) -> Injected:
    """The bug's edits applied one after the other to its source."""
    code, how, lines = bug.source, "exact", []
    for edit in bug.edits:
        place = find(code, edit)
        if place is None:
            return Injected(bug, "unmatched", bug.source, missing=edit.original)
        start, end, exact = place
        if not exact:
            how = "normalised"
        lines.append(code.count("\n", 0, start) + 1)
        code = code[:start] + edit.faulty + code[end:]
    return Injected(bug, how, code, tuple(lines))  # type: ignore[arg-type]


def find(code: str, edit: Edit) -> tuple[int, int, bool] | None:
    """Where the edit's original text is: (start, end, exactly so)."""
    at = code.find(edit.original)
    if edit.original and at >= 0:
        return at, at + len(edit.original), True
    wanted = "".join(edit.original.split())
    if not wanted:
        return None
    places = [i for i, c in enumerate(code) if not c.isspace()]
    at = "".join(code[i] for i in places).find(wanted)
    return None if at < 0 else (places[at], places[at + len(wanted) - 1] + 1, False)


def tally(bugs: Iterable[HlsBug]) -> tuple[Counter, list[Injected]]:
    """How many bugs went in how, and those that have no place."""
    counts: Counter = Counter()
    missing = []
    for bug in bugs:
        found = inject(bug)
        counts[found.how] += 1
        if found.how == "unmatched":
            missing.append(found)
    return counts, missing
