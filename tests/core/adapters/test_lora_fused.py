"""LoRA written out is peft's LoRA: outputs and gradients of whole models, in all the forms peft gives a layer."""

from __future__ import annotations

import pytest
import torch

from core.adapters import lora_fused
from core.config.schema import AdapterConfig, ModelConfig
from core.data.collate import Collator
from core.data.encode import Encoded
from core.models.fused.layer import Arithmetic, fuse_layers, unfuse_layers
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.objectives.losses import token_loss
from core.training.build import add_adapters


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["ab"], 260)


def llama_like(kind: str = "llama", **more):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, **more}
    config = getattr(transformers, f"{kind.capitalize()}Config")(
        vocab_size=260, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **sizes
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind.capitalize()}ForCausalLM")(config)


def adapted(model, **spec):
    model = add_adapters(model, [AdapterConfig(**{"r": 4, **spec})])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def batch(packed: bool):
    generator = torch.Generator().manual_seed(2)
    rows = []
    for length in (5, 9, 3):
        ids = torch.randint(5, 250, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, list(ids)))
    return Collator(1)([rows] if packed else rows)


def run(model, packed=False, dtype=None):
    given = batch(packed)
    labels = given.pop("labels")
    model.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = model(**given, use_cache=False).logits
    token_loss(logits, labels).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_as_plain(model, packed=False, dtype=None, tolerance=1e-5):
    expected, gradients = run(model, packed, dtype)
    assert fuse_layers(model, Arithmetic(lora_fused.project, lora_fused.gated_project)) == 2
    logits, found = run(model, packed, dtype)
    assert found.keys() == gradients.keys() and found
    kept = batch(packed).get("attention_mask", torch.ones(expected.shape[:2])).bool()
    torch.testing.assert_close(logits[kept], expected[kept], rtol=tolerance, atol=tolerance)
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item() + 1e-6
        assert (found[name] - gradient).abs().max() <= 5 * tolerance * scale + 1e-7, name
    unfuse_layers(model)
    assert torch.equal(run(model, packed, dtype)[0], expected)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("packed", [False, True])
def test_families(kind, packed):
    same_as_plain(adapted(llama_like(kind)), packed)


def test_gradients_come_through_the_written_out_function(monkeypatch):
    """The comparison above can fail: a wrong factor in the function shows."""
    model = adapted(llama_like())
    monkeypatch.setattr(lora_fused, "_add_low", lambda out, small, b, scale: out)
    with pytest.raises(AssertionError):
        same_as_plain(model)


@pytest.mark.parametrize(
    "spec",
    [{"rslora": True}, {"dora": True}, {"dropout": 0.5}, {"targets": ["q_proj", "down_proj"]}, {"targets": ["v_proj"]}],
    ids=str,
)
def test_every_form_of_adapter(spec):
    same_as_plain(adapted(llama_like(), **spec).train())


def test_full_tuning_trains_the_norms_too():
    same_as_plain(llama_like())


def test_biases():
    same_as_plain(adapted(llama_like(attention_bias=True)))


def test_autocast_and_bf16_bases():
    same_as_plain(adapted(llama_like()), dtype=torch.bfloat16, tolerance=0.02)
    same_as_plain(adapted(llama_like().bfloat16()), dtype=torch.bfloat16, tolerance=0.02)


def test_activation_checkpointing():
    model = adapted(llama_like()).train()
    expected = run(model)[1]
    fuse_layers(model, Arithmetic(lora_fused.project, lora_fused.gated_project))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    inner = model.get_base_model().model.layers[0].input_layernorm
    kernels = lora_fused.kernels_for
    try:
        lora_fused.kernels_for = lambda t: calls.append(1) or kernels(t)
        found = run(model)[1]
    finally:
        lora_fused.kernels_for = kernels
    assert inner is not None and len(calls) == 6, "two forwards and a backward of two layers: nothing was recomputed"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "self_attn", "input_layernorm"])
def test_who_listens_inside_a_layer_still_hears(name):
    model = adapted(llama_like())
    layers = model.get_base_model().model.layers
    heard = []
    handle = getattr(layers[0], name).register_forward_hook(lambda *_: heard.append(name))
    same_as_plain(model)
    assert len(heard) == 3
    handle.remove()
    fuse_layers(model, Arithmetic(lora_fused.project, lora_fused.gated_project))
    run(model)
    assert len(heard) == 3


def test_a_replaced_module_is_not_passed_over():
    class Louder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.gate_proj, self.up_proj, self.down_proj = inner.gate_proj, inner.up_proj, inner.down_proj
            self.act_fn = inner.act_fn

        def forward(self, x):
            return 2 * self.inner(x)

    model = llama_like()
    model.model.layers[0].mlp = Louder(model.model.layers[0].mlp)
    expected = run(model)[0]
    assert fuse_layers(model) == 1
    torch.testing.assert_close(run(model)[0], expected, rtol=1e-5, atol=1e-5)


def test_merged_and_switched_off():
    model = adapted(llama_like())
    fuse_layers(model, Arithmetic(lora_fused.project, lora_fused.gated_project))
    given = batch(False)
    given.pop("labels")
    with torch.no_grad():
        on = model(**given, use_cache=False).logits
        with model.disable_adapter():
            off = model(**given, use_cache=False).logits
        model.merge_adapter()
        merged = model(**given, use_cache=False).logits
    torch.testing.assert_close(merged, on, rtol=1e-4, atol=1e-5)
    assert (off - on).abs().max() > 1e-3


def test_generation_uses_the_layers_own_forward(tokenizer):
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1).eval()
    ids = torch.randint(5, 250, (2, 6), generator=torch.Generator().manual_seed(0))
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert fuse_layers(model) > 0
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), expected)


def test_four_bit_bases(tmp_path):
    pytest.importorskip("bitsandbytes")
    from core.quantization.load import load_base

    llama_like(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model = load_base(ModelConfig(path=str(tmp_path), quantization="nf4"), None, device="cpu")
    model = adapted(model).train()
    fused = [m for m in model.modules() if lora_fused.low_rank(m) is not None]
    assert len(fused) == 14 and type(fused[0].base_layer).__name__ == "Linear4bit"
    same_as_plain(model, tolerance=1e-4)
