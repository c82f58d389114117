"""Masks of strings with bounds are those of the whole walk, at the price of a look-up, and few are kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from core.inference.constrained import masks
from core.inference.constrained.automaton import DEAD
from core.inference.constrained.json_schema import compile_schema
from core.inference.constrained.vocabulary import Trie

WORDS = ["a", "ab", "the", " cat", "naïve", "€", "😀x", '"', 'a"', 'ab"', "cat\\", "\\n", "é\\u00", "x" * 9, "}", ',"']
PARTIAL = [b"a\xf0\x9f", b"\x98\x80", b"\xc3", b"ab\xe2\x82"]


@pytest.fixture(scope="module")
def vocabulary():
    strings = [*(bytes([value]) for value in sorted(masks.NEEDED)), *(word.encode() for word in WORDS), *PARTIAL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "token_bytes", lambda tokenizer: [*strings, None])
        return masks.Vocabulary(SimpleNamespace(eos_token_id=len(strings)))


def walked(automaton, vocabulary, state):
    """The mask and distances by walking all tokens."""
    trie = Trie([(data, number) for number, data in enumerate(vocabulary.bytes) if data])
    ids, ends = trie.walk(automaton, state)
    mask, distances = np.zeros(vocabulary.size, bool), np.zeros(vocabulary.size, int)
    mask[ids], distances[ids] = True, automaton.distance[ends]
    if automaton.accepts(state):
        mask[vocabulary.end], distances[vocabulary.end] = True, -1
    return mask, distances


@pytest.mark.parametrize("schema", [
    {"type": "string", "maxLength": 7}, {"type": "string", "minLength": 3, "maxLength": 4}, {"type": "string"},
    {"type": "string", "minLength": 5}, {"type": "string", "maxLength": 0}, {"type": "string", "pattern": "^ab+c$"},
    {"enum": ["the cat", "the \u00e9", 3]},
    {"type": "object", "properties": {"k": {"type": "string", "maxLength": 20}}, "required": ["k"]},
])  # fmt: skip
def test_masks_are_those_of_the_whole_walk(schema, vocabulary):
    automaton = compile_schema(schema)
    found = masks.Masks(automaton, vocabulary)
    waiting, seen = [automaton.start], set()
    while waiting and len(seen) < 60:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        mask, distances = walked(automaton, vocabulary, state)
        for left in (-1, 0, 2, 5, 10_000):
            assert (found.allowed(state, left) == (mask & (distances <= left))).all()
        ends = {automaton.step(state, data) for data in vocabulary.bytes if data}
        waiting += sorted(ends - seen - {DEAD})
    assert len(seen) > 1


def test_a_bounded_string_walks_no_whole_vocabulary(vocabulary, monkeypatch):
    automaton = compile_schema({"type": "string", "maxLength": 300})
    found, state = masks.Masks(automaton, vocabulary), automaton.step(automaton.start, b'"')
    monkeypatch.setattr(vocabulary.trie, "walk", None)
    for _ in range(300):
        assert found.allowed(state, 10_000).any()
        state = automaton.step(state, b"a")


def test_only_the_masks_used_last_are_kept(vocabulary, monkeypatch):
    monkeypatch.setattr(masks, "KEPT", 0)
    automaton = compile_schema({"type": "string", "maxLength": 300})
    found, state = masks.Masks(automaton, vocabulary), automaton.step(automaton.start, b'"')
    for _ in range(300):
        found.allowed(state, 10_000)
        state = automaton.step(state, b"a")
    assert len(found._known) == 16
