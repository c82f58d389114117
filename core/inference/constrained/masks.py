"""Which tokens may follow in each state of an automaton.

Most tokens of a vocabulary are plain words. Inside a string without bounds all of them are allowed and lead back to
the same state; in one with bounds, where one leads depends on the number of its characters alone. They are found once
for a vocabulary. What is left to look at in such a state are the tokens with a quote of either kind, a backslash, or a
part of a character, from there on, in tries of their own; in every other state the walk of the whole trie soon ends,
as few bytes may follow (Dong et al. 2024, "XGrammar", separate tokens in the same way). The masks used last are kept,
so a schema that is used again costs a look-up for each token.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np

from core.errors import UnsupportedModelError
from core.inference.constrained.automaton import DEAD, Automaton
from core.inference.constrained.schema_parts import outside
from core.inference.constrained.vocabulary import Trie, token_bytes

KEPT = 128 << 20
"""Bytes of masks that an automaton keeps."""
NEEDED = set(b'{}[]":,.-0123456789truefalsn\\') | set(range(0x20, 0x7F))


class Vocabulary:
    """A tokenizer's tokens as bytes.

    Attributes:
        size: ids. bytes: of each id. end: the ids that end a text. plain: ids of whole plain characters. letters: how
            many each of these has. longest: the most of them. rests: of the other tokens, what follows their plain
            characters. after: the same by the number of plain characters before.

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
        plain: list[tuple[int, int]] = []
        rests: dict[int, list[tuple[bytes, int]]] = {}
        for data, number in strings:
            at = plain_bytes(data)
            letters = len(data[:at].decode("utf-8"))
            if at == len(data):
                plain.append((number, letters))
            else:
                rests.setdefault(letters, []).append((data[at:], number))
        self.plain, self.letters = np.array(plain, dtype=np.int64).reshape(-1, 2).T
        self.longest = max([*rests, int(self.letters.max(initial=0))])
        self.rests = Trie([rest for group in rests.values() for rest in group])
        self.after = {letters: Trie(group) for letters, group in rests.items()}


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
        self._known: OrderedDict[int, tuple[np.ndarray, np.ndarray, int]] = OrderedDict()
        self._most = max(16, KEPT // (5 * vocabulary.size))
        self._after: dict[int, int | None] = {}

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
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(state)
        return known

    def _found(self, state: int) -> tuple[np.ndarray, np.ndarray, int]:
        automaton, vocabulary = self.automaton, self.vocabulary
        chain = self._chain(state)
        if chain is None:
            parts = [vocabulary.trie.walk(automaton, state)]
        else:
            ends = chain[vocabulary.letters]
            parts = [(vocabulary.plain[ends >= 0], ends[ends >= 0])]
            if chain[1] == state:
                parts.append(vocabulary.rests.walk(automaton, state))
            else:
                parts += [rest.walk(automaton, chain[n]) for n, rest in vocabulary.after.items() if chain[n] >= 0]
        mask = np.zeros(vocabulary.size, dtype=bool)
        distances = np.zeros(vocabulary.size, dtype=np.int32)
        for ids, ends in parts:
            mask[ids] = True
            distances[ids] = automaton.distance[ends]
        if automaton.accepts(state):
            mask[vocabulary.end] = True
            distances[vocabulary.end] = -1
        return mask, distances, int(distances.max())

    def _chain(self, state: int) -> np.ndarray | None:
        """The states after 0, 1, 2, … plain characters, as many as a token has; None where they differ by character."""
        chain = [state]
        for _ in range(max(1, self.vocabulary.longest)):
            following = DEAD if chain[-1] == DEAD else self._after_plain(chain[-1])
            if following is None:
                return None
            chain.append(following)
        return np.array(chain)

    def _after_plain(self, state: int) -> int | None:
        """The state that every plain character leads to; None when they lead to several."""
        if state not in self._after:
            row = self.automaton.row(state)
            targets = {int(target) for low, high in _PLAIN for target in np.unique(row[low : high + 1])}
            if len(targets) == 1:
                targets |= {self.automaton.step(state, c.encode()) for c in ("é", "€", "\ud7ff", "\uffff", "😀")}
            self._after[state] = targets.pop() if len(targets) == 1 else None
        return self._after[state]


_PLAIN = tuple(outside(0x20, 0x7E, (0x22, 0x27, 0x5C)))
