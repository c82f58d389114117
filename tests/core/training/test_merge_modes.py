"""Three ways to merge, what each does to the logits, and an export that a runtime with a plain scale reads right."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from core.config.schema import AdapterConfig, ModelConfig
from core.errors import ConfigError, MergeError, UnsupportedError
from core.inference.load import load_for_serving
from core.inference.save import save_model
from core.models.load import load_model, load_tokenizer
from core.quantization.bitsandbytes import dense_weight
from core.training.build import add_adapters
from core.training.export import export_adapter, fold, scale_of
from core.training.merge import logits_of, merge, probe_ids

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (graft[quant])"
)


def saved_adapter(folder, quantization="none", **spec):
    """A trained-looking adapter on the shipped model, as a run's model folder holds it."""
    from core.quantization.load import load_base

    config = ModelConfig(path="embedded", quantization=quantization)
    tokenizer = load_tokenizer(config)
    model = add_adapters(load_base(config, tokenizer), [AdapterConfig(**{"r": 4, **spec})])
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.peft_config["default"].base_model_name_or_path = "embedded"
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(folder, **options):
    model, tokenizer, _ = load_for_serving(str(folder), device="cpu", **options)
    return logits_of(model, probe_ids(len(tokenizer)))


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_dense_merge_takes_the_weights_that_were_trained_on(tmp_path, quantization):
    adapter = saved_adapter(tmp_path / "adapter", quantization)
    drift = merge(adapter, tmp_path / "dense", "fp32")
    live, merged = logits(adapter), logits(tmp_path / "dense")
    assert (merged - live).abs().mean() == pytest.approx(drift["total_mean"], rel=1e-3)
    if quantization == "nf4":  # LLM.int8 quantizes activations too, which no weight can repeat
        on_originals = logits(adapter, quantization="none")
        assert (merged - live).abs().mean() < 0.2 * (on_originals - live).abs().mean()
    adapted, plain = (load_for_serving(str(p), device="cpu")[0] for p in (adapter, tmp_path / "dense"))
    layer = adapted.base_model.model.model.layers[1].mlp.up_proj
    wanted = dense_weight(layer.base_layer, torch.float32) + layer.get_delta_weight("default").float()
    assert torch.allclose(plain.model.layers[1].mlp.up_proj.weight, wanted, atol=1e-5)
    note = json.loads((tmp_path / "dense" / "merge.json").read_text())
    assert note["mode"] == "dense" and note["drift"]["total_mean"] == drift["total_mean"]


@needs_bitsandbytes
def test_quantizing_again_moves_the_logits_more_and_can_be_refused(tmp_path):
    adapter = saved_adapter(tmp_path / "adapter", "nf4")
    dense, again = merge(adapter, tmp_path / "dense", "fp32"), merge(adapter, tmp_path / "again", mode="requantize")
    assert again["total_mean"] > 5 * dense["total_mean"] and again["top1"] < 1
    stored = logits(tmp_path / "again")
    assert (stored - logits(adapter)).abs().mean() == pytest.approx(again["total_mean"], rel=0.05)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    with pytest.raises(MergeError, match="the limit"):
        merge(adapter, tmp_path / "refused", mode="requantize", max_drift=again["total_mean"] / 2)
    assert not (tmp_path / "refused").exists()


def test_side_by_side_is_exact(tmp_path):
    adapter = saved_adapter(tmp_path / "adapter")
    drift = merge(adapter, tmp_path / "pair", mode="separate")
    assert drift["total_max"] == 0 and torch.equal(logits(tmp_path / "pair"), logits(adapter))
    with pytest.raises(MergeError, match="not quantized"):
        merge(adapter, tmp_path / "x", mode="requantize")
    with pytest.raises(ConfigError, match="separate, dense, requantize"):
        merge(adapter, tmp_path / "x", mode="fast")


def plain_reading(folder):
    """Logits of a runtime that reads A, B, alpha and r, and nothing else."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    model = load_model(ModelConfig(path="embedded"), None)
    for name, down in weights.items():
        if name.endswith("lora_A.weight"):
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            product = weights[name.replace("lora_A", "lora_B")] @ down
            module.weight.data += config["lora_alpha"] / config["r"] * product
    return logits_of(model, probe_ids(2048))


@pytest.mark.parametrize("spec", [{"rslora": True, "alpha": 32}, {"alpha": 3}], ids=["rank-stabilised", "alpha"])
def test_an_export_is_read_right_by_a_runtime_that_knows_only_alpha_over_r(tmp_path, spec):
    adapter = saved_adapter(tmp_path / "adapter", **spec)
    drift = export_adapter(adapter, tmp_path / "exported")
    live = logits(adapter)
    assert drift["max"] < 1e-4 and (plain_reading(tmp_path / "exported") - live).abs().max() < 1e-3
    if spec.get("rslora"):
        assert (plain_reading(adapter) - live).abs().max() > 0.05


def test_ranks_and_scales_of_single_layers_become_one():
    config = {
        "r": 2, "lora_alpha": 4, "use_rslora": False, "rank_pattern": {"up": 3}, "alpha_pattern": {"up": 12},
    }  # fmt: skip
    weights = {
        f"base_model.model.{name}.lora_{side}.weight": torch.randn(*shape)
        for name, rank in (("a.up", 3), ("a.down", 2))
        for side, shape in (("A", (rank, 5)), ("B", (6, rank)))
    }
    folded, plain = fold(weights, config)
    assert plain["r"] == plain["lora_alpha"] == 3 and not plain["rank_pattern"]
    for name, scale in (("a.up", 4.0), ("a.down", 2.0)):
        key = f"base_model.model.{name}.lora_"
        before = scale * weights[f"{key}B.weight"] @ weights[f"{key}A.weight"]
        assert torch.allclose(folded[f"{key}B.weight"] @ folded[f"{key}A.weight"], before, atol=1e-6)
    assert scale_of({**config, "use_rslora": True}, "x.up", 9) == 4.0


def test_what_other_runtimes_cannot_read_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="DoRA"):
        export_adapter(saved_adapter(tmp_path / "dora", dora=True), tmp_path / "out")
    with pytest.raises(MergeError, match="no adapter"):
        export_adapter("embedded", tmp_path / "out")
