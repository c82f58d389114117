"""Tokens under a form: bytes of every kind of tokenizer, masks against brute force, and whole generations."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest
import torch

from benchmarks.schemas import random_schema
from benchmarks.tokenizers import eight
from core.config.schema import ModelConfig
from core.errors import AppInputError, UnsupportedModelError
from core.inference.constrained import JsonConstraint
from core.inference.constrained.masks import NEEDED, Vocabulary
from core.inference.constrained.vocabulary import token_bytes
from core.inference.engines.hf import HfEngine
from core.inference.request import Request, SamplingParams
from core.models.load import load_model
from core.models.tokenizer import train_bpe

ASCII = "".join(map(chr, range(0x20, 0x7F)))
TEXTS = [ASCII, 'a {"name": "value", "n": 12} größer', "日本語 text\n"] * 20
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer", "minimum": 1, "maximum": 40}},
    "required": ["city", "n"],
}


@pytest.fixture(scope="module")
def tokenizers():
    return eight(TEXTS, 600)


@pytest.fixture(scope="module")
def engine():
    tokenizer = train_bpe(TEXTS, 500)
    return HfEngine(load_model(ModelConfig(preset="tiny"), tokenizer, seed=3), tokenizer)


def test_bytes_of_tokens_add_up_to_the_text(tokenizers):
    rng = random.Random(0)
    for name, tokenizer in tokenizers.items():
        known = token_bytes(tokenizer)
        usable = [i for i, data in enumerate(known) if data]
        for text in TEXTS[:3]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            made = b"".join(known[i] for i in ids)
            assert made.decode("utf-8").removeprefix(" ") == text.removeprefix(" "), name
        for _ in range(30):
            ids = [rng.choice(usable) for _ in range(6)]
            expected = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            found = b"".join(known[i] for i in ids).decode("utf-8", "replace")
            assert found.lstrip(" ") == expected.lstrip(" "), name


def test_masks_are_what_trying_every_token_gives(tokenizers):
    tokenizer = next(iter(tokenizers.values()))
    vocabulary = Vocabulary(tokenizer)
    rng = random.Random(2)
    for _ in range(12):
        constraint = JsonConstraint.of_schema(random_schema(rng), tokenizer)
        state, automaton = constraint.start, constraint.automaton
        for step in range(25):
            left = rng.choice([2, 5, 1000])
            mask = constraint.masks.allowed(state, left)
            for token, data in enumerate(vocabulary.bytes):
                after = automaton.step(state, data) if data else -1
                fits = data is not None and data != b"" and after >= 0 and automaton.distance[after] <= left
                ends = token in vocabulary.end and automaton.accepts(state)
                assert mask[token] == (fits or ends), (step, token, data)
            allowed = [t for t in np.flatnonzero(constraint.masks.allowed(state, 1000)) if t not in vocabulary.end]
            if not allowed:
                break
            state = constraint.advance(state, int(rng.choice(allowed)))


def test_a_vocabulary_that_cannot_write_json_is_refused(tokenizers):
    with pytest.raises(UnsupportedModelError, match="no token for these characters"):
        Vocabulary(next(iter(eight(["abc"] * 9, 300).values().__reversed__())))
    assert NEEDED


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "seed": 1}, {"beams": 3}])
def test_generation_is_valid_whatever_the_weights(engine, sampling):
    constraint = JsonConstraint.of_schema(SCHEMA, engine.tokenizer)
    ids = engine.tokenizer("Where?")["input_ids"]
    requests = [Request(ids, constraint=constraint), Request(ids), Request(ids + ids, constraint=constraint)]
    outputs = engine.generate(requests, SamplingParams(max_new_tokens=40, **sampling))
    for output in (outputs[0], outputs[2]):
        jsonschema.validate(json.loads(output.text), SCHEMA)
        assert output.finish_reason == "stop"
    with pytest.raises(json.JSONDecodeError):
        json.loads(outputs[1].text)


def test_a_stream_keeps_the_form_too(engine):
    constraint = JsonConstraint.of_schema(SCHEMA, engine.tokenizer)
    request = Request(engine.tokenizer("Where?")["input_ids"], constraint=constraint)
    *events, done = engine.stream(request, SamplingParams(max_new_tokens=40))
    assert "".join(e.text for e in events) == done.text
    assert done.text == engine.generate([request], SamplingParams(max_new_tokens=40))[0].text


def test_a_budget_that_cannot_hold_the_shortest_text_is_refused(engine):
    constraint = JsonConstraint.of_schema(SCHEMA, engine.tokenizer)
    request = Request([5], constraint=constraint)
    with pytest.raises(AppInputError, match="max_new_tokens"):
        engine.generate([request], SamplingParams(max_new_tokens=constraint.shortest - 1))
    (output,) = engine.generate([request], SamplingParams(max_new_tokens=constraint.shortest))
    assert json.loads(output.text).keys() == {"city", "n"}
    assert torch.is_grad_enabled()
