"""Text cut into the words that a lexical index counts. `code` also cuts identifiers at capitals and underscores."""

from __future__ import annotations

import re
from collections.abc import Callable

from core.errors import ConfigError, nearest

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


def plain(text: str) -> list[str]:
    """Runs of letters and digits, lower-cased; an apostrophe inside a word stays."""
    return [word.lower() for word in _WORD.findall(text)]


def code(text: str) -> list[str]:
    """As `plain`, and `getHTTPStatus_v2` gives get, http, status, v, 2."""
    return [part.lower() for part in _PART.findall(text)]


WORDS: dict[str, Callable[[str], list[str]]] = {"plain": plain, "code": code}


def words_by(name: str) -> Callable[[str], list[str]]:
    """The way of cutting called `name`. Raises `ConfigError` with the nearest name."""
    if name not in WORDS:
        raise ConfigError(f"unknown words '{name}'", hint=nearest(name, WORDS) or f"known: {', '.join(WORDS)}")
    return WORDS[name]
