"""DeepNorm: the formula, the initialisation, a folder and back, and gradients that do not depend on the depth."""

from __future__ import annotations

import pytest
import torch

from core.config.registry import BuildContext, NoOptions
from core.config.schema import BackendConfig, ModelConfig
from core.control.deepnorm import build
from core.errors import ConfigError, UnsupportedError
from core.models.load import load_model
from core.models.presets import PRESETS
from core.models.topology import ModelTopology
from core.training.build import build_base


@pytest.fixture
def deep(monkeypatch):
    def make(layers, preset="tiny"):
        kind, shape = PRESETS[preset]
        monkeypatch.setitem(PRESETS, "deep", (kind, {**shape, "num_hidden_layers": layers}))
        return load_model(ModelConfig(preset="deep"), range(300), seed=3)

    return make


def made(model, seed=1):
    return build(model, NoOptions(), BuildContext(seed))


IDS = torch.arange(5, 29).reshape(2, 12)


def test_the_formula(deep):
    model = made(deep(2)).eval()
    x = model.model.embed_tokens(IDS)
    position = torch.arange(12)[None].expand(2, -1)
    rotary = model.model.rotary_emb(x, position)
    mask = torch.full((12, 12), float("-inf")).triu(1)[None, None]
    alpha = 4**0.25
    for block in model.model.layers:
        x = block.input_layernorm(alpha * x + block.self_attn(x, position_embeddings=rotary, attention_mask=mask)[0])
        x = block.post_attention_layernorm(alpha * x + block.mlp(x))
    torch.testing.assert_close(model(IDS).logits, model.lm_head(x), atol=1e-5, rtol=1e-4)
    assert {ref.residual for ref in ModelTopology.of(model).blocks} == {"post_ln"}


def test_what_enters_the_stream_starts_small(deep):
    model, again = made(deep(8)), made(deep(8))
    for block in ModelTopology.of(model).blocks:
        for role, linear in block.linears().items():
            outputs, inputs = linear.weight.shape
            gain = 1.0 if role in ("q", "k") else 64**-0.25
            assert linear.weight.std().item() == pytest.approx(gain * (2 / (inputs + outputs)) ** 0.5, rel=0.05)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_folder_and_back(deep, tmp_path):
    model = made(deep(3)).eval()
    model.save_pretrained(tmp_path)
    again = load_model(ModelConfig(path=str(tmp_path)), None).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    cached = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=1)
    plain = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=1, use_cache=False)
    assert torch.equal(cached, plain)


def moved(model):
    """How far logits move by one small step of sign descent, and the lowest block's gradient over the highest's."""
    before = model(IDS).logits
    torch.nn.functional.cross_entropy(before[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    low, high = (model.model.layers[i].mlp.down_proj.weight.grad.norm() for i in (0, -1))
    with torch.no_grad():
        for block in model.model.layers:
            for parameter in block.parameters():
                parameter -= 1e-6 * parameter.grad.sign()
        return float((model(IDS).logits - before).square().mean().sqrt()), float(low / high)


def post_norm(model):
    """The same blocks with α = β = 1: what DeepNorm is there for."""
    for block, ref in zip(model.model.layers, ModelTopology.of(model).blocks):
        block.residual_scale = 1.0
        with torch.no_grad():
            for role, linear in ref.linears().items():
                linear.weight.mul_(1.0 if role in ("q", "k") else (8 * len(model.model.layers)) ** 0.25)
    return model


def test_updates_stay_bounded_where_plain_post_norm_explodes(deep):
    shallow, ratio = moved(made(deep(4)))
    far, deep_ratio = moved(made(deep(48)))
    assert far < 6 * shallow and 0.9 < ratio < 1.1 and 0.9 < deep_ratio < 1.1
    shallow, _ = moved(post_norm(made(deep(4))))
    far, deep_ratio = moved(post_norm(made(deep(48))))
    assert far > 100 * shallow and deep_ratio > 3


@pytest.mark.parametrize("name", ["kernels", "selective", "full"])
def test_switches_keep_the_curve(name, tmp_path, deep):
    from core.training import speed

    backend = {
        "kernels": BackendConfig(kernels="fused"),
        "selective": BackendConfig(activation_checkpoint="selective"),
        "full": BackendConfig(activation_checkpoint="full"),
    }[name]
    model, other = made(deep(4)).train(), made(deep(4)).train()
    if name == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with speed.made_fast(model, backend, torch.device("cpu")):
        for each in (model, other):
            each(IDS).logits.square().mean().backward()
    for (label, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4, msg=label)


def test_what_has_learnt_is_not_rebuilt(tmp_path, deep):
    deep(2).save_pretrained(tmp_path)
    model = load_model(ModelConfig(path=str(tmp_path)), None)
    with pytest.raises(UnsupportedError, match="pre-norm"):
        made(model)
    with pytest.raises(UnsupportedError, match="norms elsewhere"):
        made(load_model(ModelConfig(preset="tiny-gpt2"), range(300)))
    with pytest.raises(ConfigError, match="edited already"):
        made(made(deep(2)))


def test_a_preset_is_built_with_it():
    config = ModelConfig(preset="tiny", tokenizer="bpe:300", edits=[{"kind": "deepnorm"}])
    model = build_base(config, range(300), device="cpu", seed=1)
    assert type(model.model.layers[0]).__name__ == "DeepNormLlamaDecoderLayer"
