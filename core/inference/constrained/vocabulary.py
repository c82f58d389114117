"""The bytes that each token stands for, as a trie that is walked level by level.

Tokenizers write bytes in three ways: byte-level BPE gives each byte a printable letter, SentencePiece has "▁" for a
space and `<0x0A>` for a byte without a piece, and others write text as it is. Which one it is, the tokenizer's decoder
says. Special tokens stand for no text and have no place here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from core.errors import UnsupportedModelError

FEW = 150
_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def letters_of_bytes() -> dict[str, int]:
    """The printable letter of every byte in byte-level BPE (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(value): value for value in printable}
    rest = [value for value in range(256) if value not in printable]
    return letters | {chr(256 + number): value for number, value in enumerate(rest)}


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """For each id the bytes that it adds to a text; None for special tokens and gaps.

    Raises:
        UnsupportedModelError: a tokenizer whose pieces do not add up to the text (WordPiece), or a slow one.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise UnsupportedModelError("constrained decoding needs a fast tokenizer", where=type(tokenizer).__name__)
    kinds = set(_kinds(json.loads(inner.to_str()).get("decoder")))
    if "WordPiece" in kinds:
        raise UnsupportedModelError("the tokens of a WordPiece tokenizer do not add up to its text")
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    letters = letters_of_bytes() if "ByteLevel" in kinds else None
    found: list[bytes | None] = [None] * len(tokenizer)
    for piece, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if number in added:
            found[number] = added[number].encode("utf-8")
        elif letters is not None:
            found[number] = bytes(letters[letter] for letter in piece) if all(c in letters for c in piece) else None
        elif byte := _BYTE.match(piece):
            found[number] = bytes([int(byte[1], 16)])
        else:
            found[number] = piece.replace("▁", " ").encode("utf-8")
    return found


def _kinds(decoder: Any) -> Iterable[str]:
    if isinstance(decoder, dict):
        yield decoder.get("type", "")
        for inner in decoder.get("decoders", []):
            yield from _kinds(inner)


class Trie:
    """Byte strings by their beginnings; each may stand for several ids.

    Attributes:
        first, byte, node: the children of node n are `node[first[n]:first[n + 1]]`, reached by `byte` of the same
            places.
        tokens, places: ids in order of their node, those of node n at `places[n]:places[n + 1]`.
    """

    def __init__(self, strings: Sequence[tuple[bytes, int]]) -> None:
        children: list[dict[int, int]] = [{}]
        ids: list[list[int]] = [[]]
        for data, number in strings:
            at = 0
            for value in data:
                following = children[at].get(value)
                if following is None:
                    following = children[at][value] = len(children)
                    children.append({})
                    ids.append([])
                at = following
            ids[at].append(number)
        self._children, self._ids = children, ids
        counts = np.array([len(c) for c in children])
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.byte = np.array([value for c in children for value in c], dtype=np.int64)
        self.node = np.array([target for c in children for target in c.values()], dtype=np.int64)
        self.places = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
        self.tokens = np.array([number for i in ids for number in i], dtype=np.int64)

    def walk(self, automaton: Any, state: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids whose bytes keep the text alive from `state`, and the states that they lead to.

        Where few bytes may follow, a plain search is done before one over arrays has begun.
        """
        found = self._searched(automaton, state)
        return self._swept(automaton, state) if found is None else found

    def _searched(self, automaton: Any, state: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Node by node; None when there are more than `FEW`."""
        ids: list[int] = []
        ends: list[int] = []
        waiting = [(0, state)]
        for _ in range(FEW):
            if not waiting:
                return np.array(ids, dtype=np.int64), np.array(ends, dtype=np.int64)
            node, at = waiting.pop()
            if self._ids[node]:
                ids += self._ids[node]
                ends += [at] * len(self._ids[node])
            moves, children = automaton.moves(at), self._children[node]
            if len(moves) < len(children):
                waiting += [(children[value], target) for value, target in moves.items() if value in children]
            else:
                waiting += [(child, moves[value]) for value, child in children.items() if value in moves]
            if len(waiting) > FEW:
                return None
        return None

    def _swept(self, automaton: Any, state: int) -> tuple[np.ndarray, np.ndarray]:
        """Level by level."""
        nodes, states = np.zeros(1, dtype=np.int64), np.array([state], dtype=np.int64)
        ids, ends = [], []
        while len(nodes):
            where, which = self._spread(self.places, nodes)
            if len(where):
                ids.append(self.tokens[where])
                ends.append(states[which])
            where, which = self._spread(self.first, nodes)
            if not len(where):
                break
            parents = states[which]
            for reached in np.unique(parents):
                automaton.row(int(reached))
            following = automaton.table[parents, self.byte[where]]
            alive = following >= 0
            nodes, states = self.node[where[alive]], following[alive].astype(np.int64)
        if not ids:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(ids), np.concatenate(ends)

    @staticmethod
    def _spread(offsets: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places between the offsets of each node, and which node each belongs to."""
        counts = offsets[nodes + 1] - offsets[nodes]
        total = int(counts.sum())
        if total == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        which = np.repeat(np.arange(len(nodes)), counts)
        starts = np.repeat(offsets[nodes] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return np.arange(total) + starts, which
