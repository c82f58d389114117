"""Cutting a text into lines and sentences, by rules.

The rules are small and need no model: a sentence ends at final punctuation that is followed by a space and something
that can begin a sentence; abbreviations, initials, ordinals ("3. Mai") and numbers do not end one; Chinese and
Japanese punctuation ends one without a space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from apps.translation.languages import UNSPACED, language

_BOUNDARY = re.compile(
    r"(?<=[.!?…])[\"'”»)\]]*\s+(?=[\"'“„«(\[¿¡]*[^\W\d_a-zß-öø-ÿ]|\d)|(?<=[。！？])[”』」]*\s*(?=\S)"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'„“])(?:[^\W\d_]|\d{1,2}|[Dd]r|[Pp]rof|Mr|Mrs|Ms|St|[Nn]r|No|Hr|Fr|Abs|bzw|ca|etc|usw|vgl|vs|z\.\s?B|"
    r"d\.\s?h|u\.\s?a|e\.g|i\.e|Mio|Mrd|Art|Fig|Abb|Jan|Feb|Aug|Sept|Okt|Oct|Nov|Dez|Dec)\.$"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of one line, in order; together they hold every character except the spaces between them."""
    sentences, start = [], 0
    for match in _BOUNDARY.finditer(text):
        candidate = text[start : match.end()].strip()
        if _ABBREVIATION.search(candidate):
            continue
        if candidate:
            sentences.append(candidate)
        start = match.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


def split_lines(text: str) -> list[list[str]]:
    """For each line of `text` its sentences; an empty line has none."""
    return [split_sentences(line) for line in text.split("\n")]


def separators(lines: Sequence[Sequence[str]], tgt_lang: str) -> list[str]:
    """What stands before the first sentence, and after each: a space within a line, line breaks between lines."""
    between = "" if language(tgt_lang).code in UNSPACED else " "
    found = [""]
    for number, line in enumerate(lines, 1):
        found += [between] * (len(line) - 1) + [""] * bool(line)
        if number < len(lines):
            found[-1] += "\n"
    return found
