"""Series and parallel adapters: identity, counts, gradients, merging, and their life inside peft."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers as tr

import core.adapters  # noqa: F401  (makes the tuners known to peft)
from core.adapters import BottleneckConfig, adapter_preset
from core.adapters.bottleneck import BottleneckLayer
from core.errors import ConfigError, MergeError, UnsupportedError
from core.models.topology import ModelTopology

IDS = torch.arange(3, 15).view(1, -1)


def llama(**more):
    torch.manual_seed(0)
    config = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 36, "max_position_embeddings": 64, "num_key_value_heads": 2, "mlp_bias": True,
    }  # fmt: skip
    return tr.LlamaForCausalLM(tr.LlamaConfig(**config | more)).eval()


def gpt2():
    torch.manual_seed(0)
    return tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=64)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def wake(model, scale=0.3):
    """Values in every adapter weight, so that an identity cannot hide a fault."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bottleneck_" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("base", [llama, gpt2])
@pytest.mark.parametrize("preset", ["series", "series_after_mlp", "parallel"])
def test_it_starts_as_the_base_and_has_the_parameters_of_the_formula(base, preset):
    model = base()
    before, topology = logits(model), ModelTopology.of(model)
    config = adapter_preset(preset, model, r=5)
    adapted = peft.get_peft_model(model, config).eval()
    assert torch.equal(logits(adapted), before)
    roles = {"series": ("gate", "up"), "series_after_mlp": ("down",), "parallel": ("up", "down")}[preset]
    expected = 0
    for block in topology.blocks:
        for role in roles:
            if getattr(block, role) is not None:
                expected += 5 * (2 * 24 if preset != "parallel" else 24 + (36 if base is llama else 96))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == expected
    adapted.train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    ups = [p for n, p in adapted.named_parameters() if "bottleneck_up" in n]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ups)


def test_each_mode_is_its_formula():
    torch.manual_seed(0)
    base, x = torch.nn.Linear(6, 4), torch.randn(3, 6)
    for mode in ("series_in", "series_out", "parallel"):
        layer = BottleneckLayer(copy.deepcopy(base), "default", BottleneckConfig(r=2, init="bert", scaling=0.7), mode)
        with torch.no_grad():
            layer.bottleneck_up["default"].weight.mul_(50)
            layer.bottleneck_down["default"].weight.mul_(50)
        down, up = layer.bottleneck_down["default"].weight, layer.bottleneck_up["default"].weight
        branch = lambda v, down=down, up=up: 0.7 * torch.tanh(v @ down.T) @ up.T  # noqa: E731
        expected = {
            "series_in": base(x + branch(x)) if mode == "series_in" else None,
            "series_out": base(x) + branch(base(x)) if mode == "series_out" else None,
            "parallel": base(x) + branch(x) if mode == "parallel" else None,
        }[mode]
        torch.testing.assert_close(layer(x), expected)
        assert (layer(x) - base(x)).abs().max() > 0.1


def test_gradients_and_the_learnt_scale():
    config = BottleneckConfig(r=2, scaling="learned", init="bert")
    layer = BottleneckLayer(torch.nn.Linear(5, 4), "default", config, "parallel").double()
    x = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    out = torch.randn(3, 4, dtype=torch.double)
    (layer(x) * out).sum().backward()
    inner = torch.tanh(x @ layer.bottleneck_down["default"].weight.T) @ layer.bottleneck_up["default"].weight.T
    torch.testing.assert_close(layer.bottleneck_scale["default"].grad, (out * inner).sum())


@pytest.mark.parametrize("mode", ["series_in", "series_out", "parallel"])
@pytest.mark.parametrize("base", [llama, gpt2])
def test_without_activation_it_merges_and_unmerges(base, mode):
    model = base()
    targets = ModelTopology.of(model).targets("q", "up", "down")
    adapted = wake(
        peft.get_peft_model(model, BottleneckConfig(r=3, act=None, mode=mode, target_modules=targets))
    ).eval()
    expected, weights = logits(adapted), {n: p.clone() for n, p in adapted.named_parameters() if "base_layer" in n}
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-4)
    adapted.unmerge_adapter()
    assert all(torch.equal(p, weights[n]) for n, p in adapted.named_parameters() if "base_layer" in n)
    assert torch.equal(logits(adapted), expected)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)
    assert type(merged) is type(base()) and not any("bottleneck" in n for n, _ in merged.named_parameters())


def test_with_activation_it_says_why_it_does_not_merge():
    model = peft.get_peft_model(llama(), BottleneckConfig(r=3))
    with pytest.raises(MergeError, match="tanh"):
        model.merge_and_unload()


def test_several_adapters_compose_in_their_order():
    model = llama()
    targets = ModelTopology.of(model).targets("up")
    config = BottleneckConfig(r=3, act=None, mode="series_in", target_modules=targets)
    adapted = peft.get_peft_model(model, config, adapter_name="a")
    adapted.add_adapter("b", copy.deepcopy(config))
    wake(adapted).eval()
    found = {}
    for names in (["a", "b"], ["b", "a"]):
        adapted.base_model.set_adapter(names)
        found[names[0]] = logits(adapted)
        adapted.merge_adapter(names)
        torch.testing.assert_close(logits(adapted), found[names[0]], atol=1e-5, rtol=1e-4)
        adapted.unmerge_adapter()
    assert (found["a"] - found["b"]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["series_in", "series_out", "parallel"])
def test_adapters_merged_one_by_one_are_undone_together(mode):
    targets = ModelTopology.of(llama()).targets("up", "down")
    config = BottleneckConfig(r=3, act=None, mode=mode, target_modules=targets)
    adapted = peft.get_peft_model(llama(), config, adapter_name="a")
    adapted.add_adapter("b", copy.deepcopy(config))
    adapted.base_model.set_adapter(["a", "b"])
    wake(adapted).eval()
    both = logits(adapted)
    adapted.merge_adapter(["a"])
    adapted.merge_adapter(["b"])
    torch.testing.assert_close(logits(adapted), both, atol=1e-5, rtol=1e-4)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted), both)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(llama()))


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        (["qproj", "up_prj"], "no module matches"),
        (["q_proj", "lm_head"], "no part of a block"),
        (["q_proj", "input_layernorm"], "not a linear map"),
    ],
)
def test_wrong_targets_leave_the_model_as_it_was_and_name_the_nearest(targets, what):
    model = llama()
    names = list(model.state_dict())
    with pytest.raises(ConfigError, match=what) as error:
        peft.get_peft_model(model, BottleneckConfig(target_modules=targets))
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    assert "no module" not in what or ("'q_proj'" in error.value.hint and "'up_proj'" in error.value.hint)


def test_plain_peft_saves_and_loads_it(tmp_path):
    model = llama()
    adapted = wake(peft.get_peft_model(model, BottleneckConfig(r=3, scaling="learned", task_type="CAUSAL_LM"))).eval()
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(again), expected)
    with again.disable_adapter():
        assert torch.equal(logits(again), logits(llama()))
    assert torch.equal(logits(copy.deepcopy(again)), expected)
    text = (tmp_path / "adapter_config.json").read_text()
    assert '"peft_type": "BOTTLENECK"' in text


def test_half_precision_computes_the_branch_in_fp32():
    model = wake(peft.get_peft_model(llama().to(torch.bfloat16), BottleneckConfig(r=3)))
    layer = next(m for m in model.modules() if isinstance(m, BottleneckLayer))
    assert layer.bottleneck_down["default"].weight.dtype == torch.float32
    x = torch.randn(2, layer.in_features).bfloat16()
    inner = torch.tanh(x.float() @ layer.bottleneck_down["default"].weight.T) @ layer.bottleneck_up["default"].weight.T
    assert torch.equal(layer.branch("default", x), inner.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.branch("default", x), inner.bfloat16())


def test_the_lora_preset_is_pefts_own():
    torch.manual_seed(3)
    ours = peft.get_peft_model(llama(), adapter_preset("lora", llama()))
    torch.manual_seed(3)
    by_hand = peft.LoraConfig(
        r=32,
        lora_alpha=64,
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(llama(), by_hand)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    # the order in which peft draws differs with the order of names only
    assert all(mine[name].shape == other[name].shape for name in mine)
    assert torch.equal(logits(ours.eval()), logits(theirs.eval()))
    prefix = peft.get_peft_model(llama(), adapter_preset("prefix", llama()))
    assert prefix.get_nb_trainable_parameters()[0] == 10 * 2 * 2 * 2 * 6
    prefix(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: BottleneckConfig(r=0), "width 0"),
        (lambda: BottleneckConfig(mode="serial"), "unknown mode"),
        (lambda: BottleneckConfig(act="tan"), "did you mean 'tanh'|unknown act"),
        (lambda: BottleneckConfig(scaling="big"), "scaling"),
        (lambda: adapter_preset("paralel", llama()), "unknown adapter preset"),
        (lambda: adapter_preset("prefix", tr.BertForMaskedLM(tr.BertConfig(num_hidden_layers=1))), "no prefix before"),
        (lambda: peft.get_peft_model(llama(), BottleneckConfig(target_modules=["lm_head"])), "no part of a block"),
        (
            lambda: peft.get_peft_model(llama(), BottleneckConfig(target_modules=["input_layernorm"])),
            "not a linear map",
        ),
    ],
)
def test_mistakes_are_told(make, what):
    with pytest.raises((ConfigError, UnsupportedError), match=what):
        make()
