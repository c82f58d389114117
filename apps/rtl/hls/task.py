"""The bug task for a model: name the type, find the line, give the repaired line; and the score of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apps.rtl.hls.dataset import TYPES, HlsBug
from apps.rtl.hls.inject import Injected, inject

PROMPT = (
    "This C++ function for high-level synthesis has one kind of bug. Kinds: {kinds}.\n\n{code}\n\n"
    "Answer with three lines: 'type: …', 'line: …' and 'repair: …'.\n"
)


@dataclass(frozen=True)
class HlsScore:
    """Whether an answer names the type, the line (within one), and the original text of it."""

    kind: bool
    line: bool
    repair: bool


def prompt(bug: HlsBug) -> str | None:
    """The task's prompt with numbered lines; None when the bug cannot be put into its source."""
    found = inject(bug)
    if found.how == "unmatched":
        return None
    numbered = "\n".join(f"{n:>3} {line}" for n, line in enumerate(found.code.splitlines(), 1))
    return PROMPT.format(kinds=", ".join(f"{k} ({v})" for k, v in TYPES.items()), code=numbered)


def score(answer: str, found: Injected) -> HlsScore:
    """Score an answer against the bug that was put in."""
    said = {m[1].lower(): m[2].strip() for m in re.finditer(r"^\s*(type|line|repair)\s*:\s*(.*)$", answer, re.M | re.I)}
    kinds = set(re.findall(r"[A-Z]{3,4}", said.get("type", "").upper()))
    numbers = [int(n) for n in re.findall(r"\d+", said.get("line", ""))]
    wanted = {"".join(edit.original.split()) for edit in found.bug.edits}
    return HlsScore(
        bool(kinds) and kinds <= set(found.bug.kinds),
        any(abs(n - line) <= 1 for n in numbers for line in found.lines),
        "".join(said.get("repair", "").split()) in wanted,
    )
