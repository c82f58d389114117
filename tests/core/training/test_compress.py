"""Compress: a model in, a folder of codes out that serving opens, and refusals before work."""

from __future__ import annotations

import pytest
import torch

from core.config.files import read_json
from core.config.load import recipe_from
from core.errors import ConfigError, UnsupportedError
from core.training.compress import compress


def recipe(**model):
    source = {"reader": "embedded", "limit": 12, "with": {"src": "de", "tgt": "en"}}
    return recipe_from(
        {
            "app": "translation",
            "model": {"path": "embedded", **model},
            "data": {"train": [{**source, "split": "train"}], "eval": [{**source, "split": "dev", "limit": 2}]},
            "method": "translation.parallel",
            "eval": {"sampling": {"max_new_tokens": 4}},
        }
    )


def test_the_folder_serves_the_codes_and_says_what_the_task_lost(tmp_path):
    from core.inference.load import load_for_serving

    found = compress(recipe(), "gptq:3:g64", tmp_path / "out", device="cpu", rows=4, length=64)
    assert read_json(tmp_path / "out" / "compress.json") == found
    assert found["bytes_after"] < found["bytes_before"] / 2 and len(found["layers"]) == 42
    assert all(row["output_error"] < row["weight_error"] for row in found["layers"][:3])
    assert {"before", "after", "drop"} <= set(next(iter(found["metrics"].values())))
    model, _, _ = load_for_serving(str(tmp_path / "out"), device="cpu")
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "QuantizedLinear" and layer.quant.bits == 3
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(5, 20).unsqueeze(0)).logits).all()


def test_what_cannot_be_compressed_is_refused_before_weights(tmp_path):
    with pytest.raises(UnsupportedError, match="graft:nf4") as error:
        compress(recipe(), "nf4", tmp_path / "x")
    assert "another library" in str(error.value)
    with pytest.raises(ConfigError, match="unknown preset|unknown number format"):
        compress(recipe(), "gptk", tmp_path / "x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="taken"):
        compress(recipe(), "rtn", tmp_path / "taken")
    with pytest.raises(UnsupportedError, match="not trained in it"):
        compress(recipe(), "trilm", tmp_path / "y", device="cpu", evaluate=False)
