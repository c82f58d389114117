"""Misspelt keys of a recipe, mended in its text: everything else, comments and line ends included, stays as it is.

Only a key that is almost that of its block is mended; what a person may have meant otherwise stays an error.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from core.config.files import write_text
from core.config.load import apply_override, parse_yaml, recipe_from
from core.config.typed import UnknownKey
from core.errors import ConfigError, GraftError

ALMOST = 0.75


def mend(path: str | Path, overrides: Iterable[str] = ()) -> str:
    """Write the recipe back with its misspelt keys mended. Returns a unified diff, "" where nothing changed."""
    place = Path(path).resolve()
    try:
        before = place.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe cannot be read: {error}", where=str(path)) from error
    text = mended(before, overrides)
    if text == before:
        return ""
    mode = place.stat().st_mode
    write_text(place, text)
    os.chmod(place, mode)
    lines = before.splitlines(), text.splitlines()
    return "\n".join(difflib.unified_diff(*lines, str(path), f"{path}, mended", n=1, lineterm=""))


def mended(text: str, overrides: Iterable[str] = ()) -> str:
    """The text with its misspelt keys mended, up to the first error of another kind."""
    overrides = list(overrides)
    while True:
        try:
            raw, places = parse_yaml(text)
            for override in overrides:
                apply_override(raw, places, override)
            recipe_from(raw, places)
        except UnknownKey as error:
            new = _with_its_key(text, error)
            if new is None:
                return text
            text = new
        except GraftError:
            return text
        else:
            return text


def _with_its_key(text: str, error: UnknownKey) -> str | None:
    """The text with the key that `error` tells of mended; None where that cannot be done for certain."""
    wrong = str(error.path[-1])
    close = difflib.get_close_matches(wrong, error.known, n=2, cutoff=ALMOST)
    if not close or (len(close) > 1 and _alike(wrong, close[1]) == _alike(wrong, close[0])):
        return None
    for path, key, block in _keys(yaml.compose(text, Loader=yaml.SafeLoader), ()):
        # a stage's blocks are told of as the recipe's, so the path is compared from its end
        here = f":{key.start_mark.line + 1} " in f"{error.where} " and path[-len(error.path) :] == error.path
        if here and close[0] not in block:
            return text[: key.start_mark.index] + close[0] + text[key.end_mark.index :]
    return None


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, b, a).ratio()


def _keys(node: Any, path: tuple) -> Iterator[tuple[tuple, Any, list[str]]]:
    """(path, node, all keys of its block) of every key."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        for key, value in node.value:
            yield (*path, key.value), key, names
            yield from _keys(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _keys(item, (*path, number))
