"""Any recipe takes a preset's name: it trains on those weights, and what it saved is served on the same ones."""

from __future__ import annotations

import pytest
import torch

from core.config.load import recipe_from
from core.config.registry import QUANTIZERS
from core.config.run_folder import RunFolder
from core.errors import ConfigError, UnsupportedError
from core.quantization.presets import PRESETS


def recipe(output, adapters=({"kind": "lora", "r": 4},), **model):
    return recipe_from(
        {
            "app": "translation",
            "output": str(output),
            "model": {"path": "embedded", "adapters": list(adapters), **model},
            "data": {
                "train": [{"reader": "embedded", "split": "train", "limit": 16, "with": {"src": "de", "tgt": "en"}}],
                "max_length": 96,
            },
            "method": "translation.parallel",
            "train": {"max_steps": 2, "lr": 5e-2, "batch": {"size": 8}},
            "eval": {"every": 0, "retention": False},
        }
    )


def logits(path, **options):
    from core.inference.load import load_for_serving

    model, _, _ = load_for_serving(str(path), device="cpu", **options)
    with torch.no_grad():
        return model, model(input_ids=torch.arange(5, 40).unsqueeze(0)).logits


def test_every_preset_is_a_name_that_recipes_know():
    assert set(PRESETS) <= set(QUANTIZERS.names())


@pytest.mark.parametrize("spec", ["bitmod:3", "gptq:3", "graft:nf4"])
def test_trained_and_served_on_the_same_codes(tmp_path, spec):
    from core.training.run import train

    run = RunFolder.create(recipe(tmp_path / "run", quantization=spec))
    train(run.recipe(), run)
    model, first = logits(run.path)
    again, second = logits(run.path)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert type(layer.base_layer).__name__ == "QuantizedLinear" and torch.equal(first, second)
    carried = (run.model_dir / "base" / "config.json").is_file()
    assert carried == (spec == "gptq:3")
    with model.disable_adapter(), torch.no_grad():
        plain = model(input_ids=torch.arange(5, 40).unsqueeze(0)).logits
    assert not torch.equal(plain, first)


def test_a_trained_preset_needs_no_adapter_and_reloads_in_its_form(tmp_path):
    from core.training.run import train

    run = RunFolder.create(recipe(tmp_path / "run", adapters=(), quantization="trilm"))
    train(run.recipe(), run)
    model, _ = logits(run.path)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "TernaryLinear"


def test_a_pipeline_serves_in_a_preset():
    model, rounded = logits("embedded", quantization="rtn:8")
    _, plain = logits("embedded")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "QuantizedLinear"
    assert 0 < (rounded - plain).abs().max() < 0.5


def test_bad_names_are_refused_before_weights():
    with pytest.raises(ConfigError, match="unknown setting 'int4x'"):
        recipe("x", quantization="awq:int4x")
    with pytest.raises(ConfigError, match="needs calibration text"):
        logits("embedded", quantization="awq")
    with pytest.raises(ConfigError, match="no adapter trains"):
        recipe("x", adapters=(), quantization="awq")


def test_codes_are_not_quantized_again(tmp_path):
    from transformers import AutoTokenizer

    from core.config.schema import ModelConfig
    from core.models.load import EMBEDDED, load_model
    from core.quantization import quantize_model

    model = load_model(ModelConfig(path="embedded"), None)
    quantize_model(model, "rtn:4:g64")
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=torch.arange(5, 40).unsqueeze(0)).logits
    assert torch.equal(logits(tmp_path)[1], expected)
    with pytest.raises(UnsupportedError, match="holds codes already"):
        logits(tmp_path, quantization="bitmod")
