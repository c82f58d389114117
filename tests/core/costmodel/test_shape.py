"""Sizes read from a config.json are those of the model that transformers builds from it."""

from __future__ import annotations

import pytest

from core.costmodel.shape import FAMILIES, ModelShape
from core.errors import UnsupportedModelError

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "llama": SMALL,
    "llama, shared heads, biases, tied": {
        **SMALL,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama, wide heads": {**SMALL, "head_dim": 32},
    "mistral": {**SMALL, "num_key_value_heads": 2, "head_dim": 16},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 24},
    "gemma": {**SMALL, "num_key_value_heads": 1, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 50},
    "gpt_neox": SMALL,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_exactly(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name.split(",")[0], vocab_size=100, **CONFIGS[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    shape = ModelShape.from_config(config.to_dict())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    linears = {n: m for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and n != "lm_head"}
    held = sum(m.weight.numel() for n, m in linears.items() if n != "embed_out")
    assert shape.linear_weights == held


def test_every_family_is_tested():
    assert {name.split(",")[0] for name in CONFIGS} == set(FAMILIES)


def test_an_unknown_family_is_said():
    with pytest.raises(UnsupportedModelError, match="llama"):
        ModelShape.from_config({"model_type": "lama"})
