"""Which tokens may follow in each state of an automaton.

Most tokens of a vocabulary are plain words, and inside a string all of them are allowed and lead back to the same
state. They are found once for a vocabulary. What is left to look at in such a state are the tokens with a quote of
either kind, a backslash, or a part of a character, from there on, in a trie of their own; in every other state the
walk of the whole trie soon ends, as few bytes may follow (Dong et al. 2024, "XGrammar", separate tokens in the same
way). A state's mask is kept, so a schema that is used again costs a look-up for each token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from core.errors import UnsupportedModelError
from core.inference.constrained.automaton import Automaton
from core.inference.constrained.schema_parts import outside
from core.inference.constrained.vocabulary import Trie, token_bytes

NEEDED = set(b'{}[]":,.-0123456789truefalsn\\') | set(range(0x20, 0x7F))


class Vocabulary:
    """A tokenizer's tokens as bytes.

    Attributes:
        size: ids. bytes: of each id. end: the ids that end a text.

    Raises:
        UnsupportedModelError: the tokens cannot write every character that JSON may need.
    """

    def __init__(self, tokenizer: Any, size: int = 0) -> None:
        self.bytes = token_bytes(tokenizer)
        self.size = max(size, len(self.bytes))
        self.end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        single = {data[0] for data in self.bytes if data is not None and len(data) == 1}
        if missing := NEEDED - single:
            shown = "".join(map(chr, sorted(missing)[:10]))
            raise UnsupportedModelError(f"the tokenizer has no token for these characters alone: {shown}")
        strings = [(data, number) for number, data in enumerate(self.bytes) if data]
        self.trie = Trie(strings)
        self.plain = np.zeros(self.size, dtype=bool)
        rests = []
        for data, number in strings:
            at = plain_bytes(data)
            if at == len(data):
                self.plain[number] = True
            else:
                rests.append((data[at:], number))
        self.rests = Trie(rests)


def vocabulary_of(tokenizer: Any, size: int = 0) -> Vocabulary:
    """The tokenizer's `Vocabulary`, made once; `size` is the number of logits where the model has more."""
    return _made(tokenizer, size)


@lru_cache(maxsize=8)
def _made(tokenizer: Any, size: int) -> Vocabulary:
    return Vocabulary(tokenizer, size)


def plain_bytes(data: bytes) -> int:
    """How many first bytes are whole characters that a string in quotes of either kind holds as they are."""
    at = 0
    while at < len(data):
        value = data[at]
        size = 1 if 0x20 <= value < 0x7F and value not in (0x22, 0x27, 0x5C) else 0
        if value >= 0x80:
            size = 2 if 0xC2 <= value <= 0xDF else 3 if 0xE0 <= value <= 0xEF else 4 if 0xF0 <= value <= 0xF4 else 0
            try:
                data[at : at + size].decode("utf-8")
            except UnicodeDecodeError:
                size = 0
            if at + size > len(data):
                size = 0
        if size == 0:
            return at
        at += size
    return at


class Masks:
    """The masks of one automaton over one vocabulary."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self.automaton, self.vocabulary = automaton, vocabulary
        self._known: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
        self._in_string: dict[int, bool] = {}

    def allowed(self, state: int, left: int) -> np.ndarray:
        """(V,) bool: tokens after which at most `left` more complete the text; its end is always allowed.

        Every ASCII character is a token, so a distance in bytes is never less than one in tokens.
        """
        mask, distances, farthest = self._mask(state)
        return mask if left >= farthest else mask & (distances <= max(left, -1))

    def _mask(self, state: int) -> tuple[np.ndarray, np.ndarray, int]:
        known = self._known.get(state)
        if known is None:
            known = self._known[state] = self._found(state)
        return known

    def _found(self, state: int) -> tuple[np.ndarray, np.ndarray, int]:
        automaton, vocabulary = self.automaton, self.vocabulary
        mask = np.zeros(vocabulary.size, dtype=bool)
        distances = np.zeros(vocabulary.size, dtype=np.int32)
        if self.loops_on_plain_text(state):
            mask |= vocabulary.plain
            distances[vocabulary.plain] = automaton.distance[state]
            ids, ends = vocabulary.rests.walk(automaton, state)
        else:
            ids, ends = vocabulary.trie.walk(automaton, state)
        mask[ids] = True
        distances[ids] = automaton.distance[ends]
        if automaton.accepts(state):
            mask[vocabulary.end] = True
            distances[vocabulary.end] = -1
        return mask, distances, int(distances.max())

    def loops_on_plain_text(self, state: int) -> bool:
        """Whether every plain character leads back to the state, as inside a string without bounds."""
        known = self._in_string.get(state)
        if known is None:
            row = self.automaton.row(state)
            ascii_loops = all(row[low : high + 1].tolist() == [state] * (high + 1 - low) for low, high in _PLAIN)
            others = ("é", "€", "\ud7ff", "\uffff", "😀")
            known = ascii_loops and all(self.automaton.step(state, c.encode()) == state for c in others)
            self._in_string[state] = known
        return known


_PLAIN = tuple(outside(0x20, 0x7E, (0x22, 0x27, 0x5C)))
