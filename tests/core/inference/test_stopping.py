"""Stop strings at each step: what may be skipped changes nothing."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.tokenizers import eight
from core.inference.stopping import StopStrings, completing_tokens

TEXTS = ["Ein Hund läuft.\nDer Hund schläft.", "A dog runs.\n### The end", "日本語のテキスト。\n次"] * 20
STOPS = [("\n",), ("###", "。"), ("ä", "end"), ("Hund l",)]


@pytest.fixture(scope="module")
def tokenizers():
    return eight(TEXTS, 400)


@pytest.mark.parametrize("stops", STOPS)
def test_rows_whose_last_token_cannot_end_are_skipped_without_a_difference(tokenizers, stops):
    rng, ended = random.Random(0), 0
    for tokenizer in tokenizers.values():
        completing = completing_tokens(stops, tokenizer)
        assert completing is not None and len(completing) < len(tokenizer)
        quick, slow = StopStrings(stops, 0, tokenizer, completing), StopStrings(stops, 0, tokenizer)
        ids = tokenizer(TEXTS[rng.randrange(3)])["input_ids"]
        ids += [rng.randrange(len(tokenizer)) for _ in range(100)]
        for length in range(1, len(ids)):
            before = slow(torch.tensor([ids[: length - 1] or ids[:1]]), None)
            row = torch.tensor([ids[:length], ids[:length]])
            found, expected = quick(row, None), slow(row, None)
            if expected[0] and not before[0]:
                ended += 1
                assert found.tolist() == [True, True], (ids[:length], stops)
            if not expected[0]:
                assert found.tolist() == [False, False]
    assert ended


def test_a_stop_string_that_ends_in_a_space_is_looked_for_at_every_step(tokenizers):
    assert completing_tokens(("stop ",), next(iter(tokenizers.values()))) is None
