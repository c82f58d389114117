"""A quantized base: what is stored, that the adapter trains on it, and that serving uses the same weights."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.config.schema import ModelConfig
from core.errors import BackendUnavailable, ConfigError
from core.models.load import load_model
from core.models.tokenizer import train_bpe

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (graft[quant])"
)
LORA = [{"kind": "lora", "r": 4}]


def recipe(output, **model):
    return recipe_from(
        {
            "app": "translation",
            "output": str(output),
            "model": {"path": "embedded", "adapters": LORA, **model},
            "data": {
                "train": [{"reader": "embedded", "split": "train", "limit": 24, "with": {"src": "de", "tgt": "en"}}],
                "max_length": 160,
            },
            "method": "translation.parallel",
            "train": {"max_steps": 3, "lr": 5e-2, "batch": {"size": 8}},
            "eval": {"every": 0, "retention": False},
        }
    )


@needs_bitsandbytes
@pytest.mark.parametrize("spec", ["nf4", "int8"])
def test_dense_weights_stay_within_the_formats_error(spec):
    from core.quantization.bitsandbytes import dense_weight, is_quantized_linear
    from core.quantization.load import load_base

    plain = load_model(ModelConfig(path="embedded"), None)
    held = load_base(ModelConfig(path="embedded", quantization=spec), None)
    layers = {n: m for n, m in held.named_modules() if is_quantized_linear(m)}
    assert len(layers) == 6 * 7 and "lm_head" not in layers
    for name, layer in layers.items():
        weight, dense = plain.get_submodule(name).weight, dense_weight(layer)
        # NF4's widest gap between codes is 0.304 of the block's largest weight, which is itself kept in 8 bits
        largest = weight.reshape(-1, 64).abs().amax(1, keepdim=True) if spec == "nf4" else weight.abs().amax(1, True)
        step = 0.16 * largest + 0.01 * largest.max() if spec == "nf4" else 0.51 * largest / 127
        error = (weight - dense).reshape(largest.shape[0], -1).abs()
        assert (error <= step + 1e-6).all() and error.max() > 0
        if spec == "nf4":
            assert layer.weight.numel() * 2 == weight.numel()


@needs_bitsandbytes
def test_an_adapter_on_nf4_trains_and_is_served_on_the_same_weights(tmp_path):
    from core.inference.load import load_for_serving, trained_on
    from core.training.merge import logits_of
    from core.training.run import train

    run = RunFolder.create(recipe(tmp_path / "run", quantization="nf4"))
    result = train(run.recipe(), run)
    assert result["stages"][0]["trainable"] > 0 and trained_on(str(run.model_dir)) == "nf4"
    probe = torch.arange(5, 40).unsqueeze(0)
    served, _, _ = load_for_serving(str(run.path), device="cpu")
    other, _, _ = load_for_serving(str(run.path), device="cpu", quantization="none")
    assert type(served.base_model.model.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    plain, _, _ = load_for_serving("embedded", device="cpu", quantization="nf4")
    assert (logits_of(served, probe) - logits_of(plain, probe)).abs().max() > 1e-2
    with served.disable_adapter():
        assert torch.equal(logits_of(served, probe), logits_of(plain, probe))
    assert not torch.equal(logits_of(served, probe), logits_of(other, probe))


@needs_bitsandbytes
def test_scoring_first_changes_no_weight_and_a_resume_is_bit_equal(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from core.quantization.bitsandbytes import dense_weight
    from core.quantization.load import load_base
    from core.training.merge import logits_of
    from core.training.run import train
    from core.training.trainer import SupervisedTrainer

    model = load_base(ModelConfig(path="embedded", quantization="nf4"), None).eval()
    layer = model.model.layers[0].mlp.up_proj
    before = dense_weight(layer)
    logits_of(model, torch.arange(5, 40).unsqueeze(0))
    assert torch.equal(dense_weight(layer), before)

    held = [{"reader": "embedded", "split": "dev", "limit": 2, "with": {"src": "de", "tgt": "en"}}]
    runs = []
    for name in ("whole", "broken"):
        made = recipe(tmp_path / name, quantization="nf4")
        made.data.eval = recipe_from({**made.to_dict(), "data": {**made.to_dict()["data"], "eval": held}}).data.eval
        made.eval.sampling, made.checkpoint.every = {"max_new_tokens": 2}, 1
        runs.append(RunFolder.create(made))
    step = SupervisedTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise RuntimeError("killed")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(runs[1].recipe(), runs[1])
    train(runs[0].recipe(), runs[0])
    train(runs[1].recipe(), runs[1], resume=True)
    whole, again = (load_file(run.model_dir / "adapter_model.safetensors") for run in runs)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@needs_bitsandbytes
def test_a_base_made_here_is_kept_as_the_dense_weights_it_stands_for(tmp_path):
    from core.inference.load import load_for_serving
    from core.inference.save import save_model
    from core.quantization.load import load_base
    from core.training.build import add_adapters
    from core.training.merge import logits_of

    tokenizer = train_bpe(["text"], 300)
    config = ModelConfig(preset="tiny", tokenizer="bpe:300", quantization="nf4")
    model = add_adapters(load_base(config, tokenizer), recipe("x", quantization="nf4").model.adapters)
    save_model(model, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    again, _, _ = load_for_serving(str(tmp_path / "adapter"), device="cpu", quantization="none")
    probe = torch.arange(5, 40).unsqueeze(0)
    held, dense = logits_of(model, probe), logits_of(again, probe)
    full = logits_of(load_model(ModelConfig(preset="tiny"), tokenizer), probe)
    # bitsandbytes multiplies few rows with another kernel than many; that alone is the difference
    assert (dense - held).abs().max() < 0.1 * (full - held).abs().max()


def test_bad_formats_are_refused_before_weights(monkeypatch):
    with pytest.raises(ConfigError, match="nf4"):
        recipe("x", quantization="nf5")
    with pytest.raises(ConfigError, match="no adapter trains"):
        recipe("x", quantization="nf4", adapters=[])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"graft\[quant\]"):
        recipe("x", quantization="int8")
