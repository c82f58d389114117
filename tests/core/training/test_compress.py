"""Compress: a model in, a folder of codes out that serving opens, and refusals before work."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

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


def test_the_folder_serves_the_codes_and_says_what_the_task_lost(tmp_path, capsys):
    from core.inference.load import load_for_serving

    found = compress(recipe(), "gptq:3:g64", tmp_path / "out", device="cpu", rows=4, length=64)
    assert capsys.readouterr().out.startswith("gptq calibrates"), "a search that can take long says so first"
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
    with pytest.raises(UnsupportedError, match="graft:llm_int8 is ours"):
        compress(recipe(), "int8", tmp_path / "x")
    with pytest.raises(ConfigError, match="0 sequences"):
        compress(recipe(), "gptq", tmp_path / "x", rows=0)
    with pytest.raises(ConfigError, match="-1 tokens"):
        compress(recipe(), "gptq", tmp_path / "x", length=-1)
    with pytest.raises(ConfigError, match="100000 tokens, and the model reads"):
        compress(recipe(), "gptq", tmp_path / "x", device="cpu", length=100000)
    with pytest.raises(ConfigError, match="(?s)has no setting 'epoch'.*did you mean 'epochs'"):
        compress(recipe(), "abq", tmp_path / "x", options={"epoch": 1})
    with pytest.raises(ConfigError, match="(?s)no setting.*its search has none"):
        compress(recipe(), "rtn", tmp_path / "x", options={"epochs": 1})
    with pytest.raises(ConfigError, match="'search_batches' cannot be 'few'"):
        compress(recipe(), "awq", tmp_path / "x", options={"search_batches": "few"})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        compress(recipe(), "rtn", tmp_path / "file" / "out")


def test_what_stays_dense_keeps_the_16_bits_of_its_folder(tmp_path):
    from core.inference.load import load_for_serving
    from core.quantization import quantize_model

    base, tokenizer, _ = load_for_serving("embedded", device="cpu")
    base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    found = compress(recipe(path=str(tmp_path / "base")), "rtn:4", out, device="cpu", evaluate=False)
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    # the model in memory has the frequencies of its positions besides
    assert 0 <= found["bytes_after"] - sum(tensor.nbytes for tensor in tensors.values()) < 1024
    held = sum(8 * t.nbytes for name, t in tensors.items() if "proj" in name)
    assert found["bits_per_weight"] == pytest.approx(held / sum(row["weights"] for row in found["layers"]), abs=1e-3)
    wanted, _, _ = load_for_serving(str(tmp_path / "base"), device="cpu")
    quantize_model(wanted, "rtn:4")
    served, _, _ = load_for_serving(str(out), device="cpu")
    with torch.no_grad():
        ids = torch.arange(5, 20).unsqueeze(0)
        assert torch.equal(served(ids).logits, wanted(ids).logits)


@pytest.mark.parametrize("preset", ["awq:4", "qoq"])
def test_rewrites_do_not_double_what_stays_dense(preset, tmp_path):
    from core.inference.load import load_for_serving

    base, tokenizer, _ = load_for_serving("embedded", device="cpu")
    base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = {"device": "cpu", "evaluate": False, "rows": 4, "length": 48}
    found = compress(recipe(path=str(tmp_path / "base")), preset, tmp_path / "out", **settings)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for name, t in tensors.items() if "embed" in name or "norm" in name} == {torch.bfloat16}
    assert 0 <= found["bytes_after"] - sum(tensor.nbytes for tensor in tensors.values()) < 1024


def test_a_model_folder_names_no_task(tmp_path, capsys):
    from recipes.cli import main

    (tmp_path / "config.json").write_text("{}")
    assert main(["compress", str(tmp_path), "--quantization", "rtn"]) == 2
    assert "model.path=THIS_FOLDER" in capsys.readouterr().err
