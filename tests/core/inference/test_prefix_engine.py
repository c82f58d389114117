"""The engine with a kept cache: the same text as without, and only new ids go through the model."""

from __future__ import annotations

import pytest

from core.config.schema import ModelConfig
from core.inference.engines.hf import HfEngine
from core.inference.engines.prefix import PrefixEngine
from core.inference.request import Request, SamplingParams
from core.models.load import load_model
from core.models.tokenizer import train_bpe


@pytest.fixture(scope="module")
def parts():
    tokenizer = train_bpe(["tiny"], 260)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return model, tokenizer


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_a_growing_conversation_is_fed_once_and_says_the_same(parts):
    model, tokenizer = parts
    engine, plain = PrefixEngine(model, tokenizer), HfEngine(model, tokenizer)
    sampling = SamplingParams(max_new_tokens=6, logprobs=True)
    prompt = ids(tokenizer, "a first prompt")
    total = 0
    for further in (" and more", " and still more", " to the end"):
        (mine,), (theirs,) = engine.generate([Request(prompt)], sampling), plain.generate([Request(prompt)], sampling)
        assert mine.ids == theirs.ids and mine.text == theirs.text and mine.finish_reason == theirs.finish_reason
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        total = len(prompt) + len(mine.ids)
        prompt = prompt + mine.ids + ids(tokenizer, further)
    assert total - 2 <= engine.processed <= total, "every id once; the last one of an output is fed with what follows"


def test_a_sibling_shares_the_prefix_alone(parts):
    model, tokenizer = parts
    engine, plain = PrefixEngine(model, tokenizer), HfEngine(model, tokenizer)
    sampling = SamplingParams(max_new_tokens=4, temperature=1.0, seed=5)
    shared, one, two = (ids(tokenizer, text) for text in ("the shared beginning of both", " left", " right hand"))
    for prompt in (shared + one, shared + two, shared[:3], shared + one, shared + one):
        assert engine.generate([Request(prompt)], sampling)[0] == plain.generate([Request(prompt)], sampling)[0]
    before = engine.processed
    engine.generate([Request(shared + one)], sampling)
    assert engine.processed - before <= 1 + 4, "an equal prompt costs its last id and what it makes"
    assert engine.generate([Request(one), Request(two)], sampling)[1] == plain.generate([Request(two)], sampling)[0]


def test_a_beam_search_is_computed_anew(parts):
    model, tokenizer = parts
    engine, plain = PrefixEngine(model, tokenizer), HfEngine(model, tokenizer)
    beams = SamplingParams(max_new_tokens=4, beams=2)
    prompt = Request(ids(tokenizer, "beams"))
    assert engine.generate([prompt], beams) == plain.generate([prompt], beams) and engine.processed == 0


def test_a_window_that_forgets_is_computed_anew(parts):
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = parts[1]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=4, **sizes)
    model = MistralForCausalLM(config).eval()
    engine, plain = PrefixEngine(model, tokenizer), HfEngine(model, tokenizer)
    for text in ("a long beginning", "a long beginning and an end", "a long"):
        request = Request(ids(tokenizer, text))
        sampling = SamplingParams(max_new_tokens=3)
        assert engine.generate([request], sampling) == plain.generate([request], sampling)
    assert engine.reused == 0
