"""Pairs as ids: the prompt of serving, one cut for both answers, and rows that are no pairs."""

from __future__ import annotations

import pytest

from core.data.encode import encode, encode_prompt
from core.data.segments import Segment
from core.errors import DataError
from core.training.preference.pairs import Pair, encode_pair, encode_pairs


def test_ids_are_those_of_training_and_of_serving(tiny):
    for row in tiny.rows:
        made = encode_pair(row, tiny.tokenizer)
        for side, answer in (("chosen", made.chosen_ids), ("rejected", made.rejected_ids)):
            whole = encode(getattr(row, side), tiny.tokenizer)
            assert made.prompt_ids + answer == whole.input_ids
            assert answer[-1] == tiny.tokenizer.eos_token_id
        assert made.prompt_ids == encode_prompt(row.chosen, tiny.tokenizer)


def test_a_long_prompt_is_cut_alike_for_both(tiny):
    text = "Name the color red red red red red red red red:"
    prompt = Segment(text, source=(15, len(text) - 1))
    row = Pair([prompt, Segment(" red", "a", True)], [prompt, Segment(" green white", "a", True)])
    full = encode_pair(row, tiny.tokenizer)
    size = len(full.prompt_ids) + len(full.rejected_ids) - 2
    short = encode_pair(row, tiny.tokenizer, max_length=size)
    assert len(short.prompt_ids) == len(full.prompt_ids) - 2
    assert (short.chosen_ids, short.rejected_ids) == (full.chosen_ids, full.rejected_ids)
    assert encode_pair(row, tiny.tokenizer, max_length=len(full.rejected_ids)) is None
    with pytest.raises(DataError, match="no token"):
        encode_pairs([row], tiny.tokenizer, max_length=3)


def test_rows_that_are_no_pairs(tiny):
    prompt, answer = Segment("Name red:"), Segment(" red", "a", True)
    with pytest.raises(DataError, match="pair 1: .*different prompts"):
        encode_pairs([Pair([prompt, answer], [Segment("Name it:"), answer])], tiny.tokenizer)
    with pytest.raises(DataError, match="the same"):
        encode_pairs([Pair([prompt, answer], [prompt, answer])], tiny.tokenizer)
