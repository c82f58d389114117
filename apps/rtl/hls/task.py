"""The bug task for a model: name the type, find the line, give it repaired; and the score of an answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from apps.rtl.example import RtlExample
from apps.rtl.hls.dataset import HlsBug
from apps.rtl.hls.inject import Injected, inject

_LINE = re.compile(r"^\s*(type|line|repair)\s*:[ \t]*(.*)$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class HlsScore:
    """Whether an answer names only types that are there, a line (within one), and the original text of a bug."""

    kind: bool
    line: bool
    repair: bool


def examples(bugs: Iterable[HlsBug], *, split: str | None = None, most: int | None = None) -> Iterator[RtlExample]:
    """Tasks of the bugs that can be put into their sources.

    Args:
        split: "train", or "test" for a fifth of the designs; all bugs of a design are on one side. most: characters of
            the longest source.
    """
    for bug in bugs:
        held = int(hashlib.sha256(bug.design.encode()).hexdigest(), 16) % 5 == 0
        if split is not None and held != (split == "test"):
            continue
        found = inject(bug)
        if found.how == "unmatched" or (most is not None and len(found.code) > most):
            continue
        yield RtlExample(
            numbered(found.code), top=bug.design, task="hls", answer=answer_of(found), family="_".join(bug.kinds),
            split=split or "", id=bug.id,
        )  # fmt: skip


def numbered(code: str) -> str:
    """The code with line numbers, as a model sees it."""
    return "\n".join(f"{n:>3} {line}" for n, line in enumerate(code.splitlines(), 1))


def answer_of(found: Injected) -> str:
    """The answer wanted: three lines for each edit."""
    edits = zip(found.bug.edits, found.lines)
    return "\n".join(
        f"type: {edit.kind}\nline: {line}\nrepair: {' '.join(edit.original.split())}" for edit, line in edits
    )


def score(answer: str, wanted: str) -> HlsScore:
    """Score an answer against the one wanted."""
    said, truth = _parts(answer), _parts(wanted)
    kinds = {kind for text in said["type"] for kind in re.findall(r"[A-Z]{3,4}", text.upper())}
    numbers, lines = (
        [int(n) for text in parts["line"] for n in re.findall(r"\d{1,9}", text)] for parts in (said, truth)
    )
    repairs = {"".join(text.split()) for text in truth["repair"]}
    return HlsScore(
        bool(kinds) and kinds <= set(truth["type"]),
        any(abs(n - line) <= 1 for n in numbers[: len(lines)] for line in lines),
        any("".join(text.split()) in repairs for text in said["repair"]),
    )


def _parts(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"type": [], "line": [], "repair": []}
    for match in _LINE.finditer(text):
        found[match[1].lower()].append(match[2].strip())
    return found
