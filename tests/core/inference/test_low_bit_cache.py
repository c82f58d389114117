"""The rounded key-value cache behind pipelines: chosen in a recipe, kept in the card, used by every way to generate."""

import pytest

from core.config.load import recipe_from
from core.config.schema import ModelConfig
from core.errors import ConfigError
from core.inference.engines.hf import HfEngine
from core.inference.pipeline import BasePipeline
from core.inference.request import Request, SamplingParams
from core.models.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def served():
    config = ModelConfig(path="embedded")
    tokenizer = load_tokenizer(config)
    return load_model(config, tokenizer, seed=0).eval(), tokenizer


@pytest.mark.parametrize("beams", (1, 3))
def test_a_cache_of_8_bits_hardly_changes_the_output(served, beams):
    model, tokenizer = served
    requests = [Request(ids=tokenizer(text)["input_ids"]) for text in ("Guten Tag, wie geht es", "Das Haus")]
    sampling = SamplingParams(max_new_tokens=12, beams=beams)
    plain = HfEngine(model, tokenizer).generate(requests, sampling)
    rounded = HfEngine(model, tokenizer, kv="kv8").generate(requests, sampling)
    same = sum(a == b for p, r in zip(plain, rounded) for a, b in zip(p.ids, r.ids))
    assert same >= 0.8 * sum(len(p.ids) for p in plain)


def test_streaming_uses_the_cache_too(served):
    model, tokenizer = served
    engine = HfEngine(model, tokenizer, kv="kv8")
    request, sampling = Request(ids=tokenizer("Guten Tag")["input_ids"]), SamplingParams(max_new_tokens=8)
    made, asked = [], engine._cache_for_generation
    engine._cache_for_generation = lambda: made.append(asked()) or made[-1]
    *_, last = engine.stream(request, sampling)
    assert last.result.ids == engine.generate([request], sampling)[0].ids
    assert all(cache.get_seq_length() and cache.layers[0].bits == 8 for cache in made) and len(made) == 2


def test_a_recipe_chooses_it_and_the_card_keeps_it(served, tmp_path):
    model, tokenizer = served
    pipeline = BasePipeline.from_model(model, tokenizer, kv="kv8")
    assert pipeline.engine.kv == "kv8"
    pipeline.save_pretrained(tmp_path / "m")
    assert BasePipeline.from_pretrained(tmp_path / "m", device="cpu").engine.kv == "kv8"
    base = {"app": "translation", "model": {"path": "embedded"}, "method": "translation.parallel",
            "data": {"train": [{"reader": "embedded"}]}}  # fmt: skip
    recipe = recipe_from({**base, "inference": {"kv": {"policy": "kv4"}}})
    assert recipe.inference.kv.policy == "kv4"
    with pytest.raises(ConfigError, match="kv3"):
        recipe_from({**base, "inference": {"kv": {"policy": "kv3"}}})


def test_a_model_it_cannot_serve_is_refused_when_it_is_opened(served):
    model, tokenizer = served
    config = model.config
    config.layer_types, kept = ["sliding_attention"], getattr(config, "layer_types", None)
    try:
        with pytest.raises(ConfigError, match="full attention"):
            HfEngine(model, tokenizer, kv="kv4")
    finally:
        config.layer_types = kept
