"""Every preset × every way to train on it: one step, saved, opened again, merged in the three modes.

A cell either does all of it or is refused when it is built, with the reason. The quick suite takes one preset of each
kind of storage; the others are slow.
"""

from __future__ import annotations

import contextlib
import io

import pytest
import torch

from core.config.parts import check_parts
from core.config.registry import get_app
from core.config.schema import ModelConfig
from core.config.typed import Places
from core.config.typed import build as typed
from core.errors import ConfigError, MergeError
from core.inference.load import load_for_serving
from core.models.tokenizer import train_bpe
from core.quantization.linear import QuantizedLinear
from core.quantization.presets import PRESETS
from core.training.build import add_adapters, build_base
from core.training.merge import merge
from core.training.run import save_model

METHODS = {
    "lora": {"adapters": [{"kind": "lora", "r": 4}]},
    "spiel": {"adapters": [{"kind": "spiel", "with": {"density": 0.05}}]},
    "control": {"edits": [{"kind": "control", "num_expand": 1}]},
}
QUICK = ("rtn", "nf4", "squeezellm", "trilm")
TEXTS = ["A calibration text of some length, which a tokenizer cuts into many tokens."] * 40
IDS = torch.arange(5, 37).view(2, 16)


def cells():
    return [
        pytest.param(preset, method, marks=() if preset in QUICK else pytest.mark.slow)
        for preset in PRESETS
        for method in METHODS
    ]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def merged(folder, mode):
    with contextlib.redirect_stdout(io.StringIO()):
        return merge(folder, folder.with_name(mode), mode=mode)


@pytest.mark.parametrize(("preset", "method"), cells())
def test_a_cell_trains_travels_and_merges_or_says_why_not(preset, method, tmp_path):
    spec = "graft:nf4" if preset == "nf4" else preset
    config = typed(ModelConfig, {"preset": "tiny", "tokenizer": "bpe:300", "quantization": spec, **METHODS[method]})
    if PRESETS[preset].trained:
        with pytest.raises(ConfigError, match="trains the weights themselves"):
            check_parts(config, Places(), ("model",))
        return
    check_parts(config, Places(), ("model",))
    tokenizer = train_bpe(TEXTS, 300)
    torch.manual_seed(0)
    model = add_adapters(build_base(config, tokenizer, device="cpu", seed=1, texts=TEXTS), config.adapters, seed=1)
    assert any(isinstance(part, QuantizedLinear) for part in model.modules())
    codes = {name: p.clone() for name, p in model.named_parameters() if "planes" in name}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.05)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in learning) and any(p.grad.abs().max() > 0 for p in learning)
    optimizer.step()
    assert all(torch.equal(codes[name], p) for name, p in model.named_parameters() if name in codes)

    wanted, folder = logits(model), tmp_path / "model"
    save_model(get_app("translation"), model, tokenizer, {}, folder, None)
    assert torch.equal(logits(load_for_serving(str(folder), device="cpu")[0]), wanted)
    assert merged(folder, "separate")["total_max"] == 0.0
    # without rounded activations the dense form is the same function; branches are only near to it
    exact = PRESETS[preset].act == "none" and method != "control"
    assert merged(folder, "dense")["total_mean"] < (1e-3 if exact else 2.0)
    if method == "control":
        with pytest.raises(MergeError, match="graft compress"):
            merged(folder, "requantize")
        return
    assert merged(folder, "requantize")["total_mean"] < 2.0
    again = load_for_serving(str(tmp_path / "requantize"), device="cpu")[0]
    layer = next(part for part in again.modules() if isinstance(part, QuantizedLinear))
    assert layer.quant.preset == preset and torch.isfinite(logits(again)).all()
