"""Sequential and invertible adapters: the formula by hand, exact counts, inverse, stacks, their life inside peft."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers as tr

from core.adapters import SeqBottleneckConfig, stack
from core.adapters.seq_bottleneck import NiceCoupling
from core.errors import ConfigError, MergeError, UnsupportedError
from core.models.peft_registry import peft_type, register_method

IDS = torch.arange(3, 15).view(1, -1)


def bert(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 24, "max_position_embeddings": 32}  # fmt: skip
    return tr.BertForMaskedLM(tr.BertConfig(**config | more)).eval()


def llama():
    torch.manual_seed(0)
    return tr.LlamaForCausalLM(
        tr.LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )  # fmt: skip
    ).eval()


def gpt2():
    torch.manual_seed(0)
    return tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


def xlm_r():
    torch.manual_seed(0)
    config = tr.XLMRobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip
    return tr.XLMRobertaForMaskedLM(config).eval()


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def wake(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "seq_bottleneck_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_the_counts_of_a_base_sized_encoder():
    with torch.device("meta"):
        model = tr.BertForMaskedLM(tr.BertConfig())
    counts = {}
    for name, config in {
        "seq_bn": SeqBottleneckConfig(),
        "seq_bn_inv": SeqBottleneckConfig(invertible="nice"),
        "lora": peft.LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]),
    }.items():
        adapted = peft.get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True)
        counts[name] = adapted.get_nb_trainable_parameters()[0]
    assert counts == {"seq_bn": 894_528, "seq_bn_inv": 1_190_592, "lora": 294_912}


def test_the_norm_is_applied_twice():
    model = peft.get_peft_model(bert(), SeqBottleneckConfig(reduction_factor=4))
    wake(model).eval()
    layer = model.base_model.model.bert.encoder.layer[0].output
    base, adapter = layer.base_layer, layer.seq_bottleneck_adapters["default"]
    inner, x = torch.randn(2, 5, 24), torch.randn(2, 5, 16)
    h = base.dense(inner)
    seen = base.LayerNorm(h + x)
    a = torch.relu(seen @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(layer(inner, x), base.LayerNorm(h + a + x))
    assert (layer(inner, x) - base(inner, x)).abs().max() > 0.1


@pytest.mark.parametrize("base", [llama, gpt2])
def test_a_block_with_its_norms_first_adds_behind_the_feed_forward_part(base):
    model = base()
    stack_ = model.model.layers if base is llama else model.transformer.h
    found = {}
    stack_[0].register_forward_hook(lambda m, i, o: found.update(plain=o))
    logits(model)
    plain = found["plain"]
    adapted = wake(peft.get_peft_model(model, SeqBottleneckConfig(reduction_factor=4))).eval()
    logits(adapted)
    adapter = next(m for n, m in adapted.named_modules() if n.endswith("seq_bottleneck_adapters.default"))
    torch.testing.assert_close(found["plain"], plain + adapter(plain), atol=1e-6, rtol=1e-5)


def test_the_coupling_is_undone_exactly():
    torch.manual_seed(0)
    coupling = NiceCoupling(12, 2, "relu")
    e = torch.randn(4, 7, 12)
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.mul_(20)
    torch.testing.assert_close(coupling.inverse(coupling(e)), e, atol=1e-6, rtol=1e-5)
    jacobian = torch.autograd.functional.jacobian(coupling.double(), e[0, 0].double())
    torch.testing.assert_close(
        torch.linalg.slogdet(jacobian)[1], torch.tensor(0.0, dtype=torch.double), atol=1e-9, rtol=0
    )
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.zero_()
    assert torch.equal(coupling(e.double()), e.double())


@pytest.mark.parametrize("base", [bert, llama, gpt2, xlm_r])
def test_the_inverse_stands_before_every_output_embedding(base):
    model = base()
    before = logits(model)
    head = model.get_output_embeddings()
    hidden = torch.randn(3, 16)
    plain = head(hidden)
    adapted = peft.get_peft_model(model, SeqBottleneckConfig(reduction_factor=4, invertible="nice"))
    wake(adapted).eval()
    coupling = next(m for m in adapted.modules() if isinstance(m, NiceCoupling))
    torch.testing.assert_close(head(coupling(hidden)), plain, atol=1e-5, rtol=1e-4)
    assert (logits(adapted) - before).abs().max() > 1e-2
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)
    assert torch.equal(logits(adapted.unload()), before)


@pytest.mark.parametrize("base", [bert, llama])
def test_a_stack_is_its_adapters_one_after_the_other(base):
    model = peft.get_peft_model(base(), SeqBottleneckConfig(reduction_factor=4, invertible="nice"), adapter_name="lang")
    model.add_adapter("task", SeqBottleneckConfig(reduction_factor=8))
    wake(model).eval()
    stack(model, ["lang", "task"])
    together = logits(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".task." in name for name in trained)
    with model.disable_adapter():
        pass
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    stack(model, ["task", "lang"], train="task")
    assert (logits(model) - together).abs().max() > 1e-3
    stack(model, ["lang"])
    assert (logits(model) - together).abs().max() > 1e-3
    if base is bert:
        stack(model, ["lang", "task"])
        layer = model.base_model.model.bert.encoder.layer[1].output
        inner, x = torch.randn(1, 3, 24), torch.randn(1, 3, 16)
        norm, h = layer.base_layer.LayerNorm, layer.base_layer.dense(inner)
        for name in ("lang", "task"):
            h = h + layer.seq_bottleneck_adapters[name](norm(h + x))
        torch.testing.assert_close(layer(inner, x), norm(h + x))


def test_plain_peft_saves_and_loads_it(tmp_path):
    adapted = wake(peft.get_peft_model(bert(), SeqBottleneckConfig(reduction_factor=4, invertible="nice"))).eval()
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bert(), tmp_path).eval()
    assert torch.equal(logits(again), expected)
    renamed = peft.PeftModel.from_pretrained(bert(), tmp_path, adapter_name="other").eval()
    assert torch.equal(logits(renamed), expected)
    copied = copy.deepcopy(again)
    wake(again, seed=5)
    assert torch.equal(logits(copied), expected), "a copy follows its own weights"


def test_every_weight_learns_and_the_base_does_not():
    adapted = peft.get_peft_model(bert(), SeqBottleneckConfig(reduction_factor=4, invertible="nice")).train()
    wake(adapted)
    before = {n: p.detach().clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("seq_bottleneck_" in name), name
    assert before


def test_registering_again_changes_nothing_and_a_copy_is_the_member():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from core.adapters.seq_bottleneck import SeqBottleneckModel

    count = len(PEFT_TYPE_TO_CONFIG_MAPPING)
    register_method("seq_bottleneck", SeqBottleneckConfig, SeqBottleneckModel, "seq_bottleneck_")
    member = peft_type("seq_bottleneck")
    assert len(PEFT_TYPE_TO_CONFIG_MAPPING) == count and member is peft.PeftType("SEQ_BOTTLENECK")
    assert copy.deepcopy(SeqBottleneckConfig()).peft_type == member and copy.deepcopy(member) is member
    assert peft.PeftType.SEQ_BOTTLENECK is member and list(peft.PeftType).count(member) == 1


def test_mistakes_are_told():
    with pytest.raises(MergeError, match="activation"):
        peft.get_peft_model(bert(), SeqBottleneckConfig()).merge_and_unload()
    with pytest.raises(ConfigError, match="did you mean 'relu'|unknown activation"):
        SeqBottleneckConfig(act="rely")
    odd = bert(hidden_size=15, num_attention_heads=3)
    with pytest.raises(ConfigError, match="odd width 15"):
        peft.get_peft_model(odd, SeqBottleneckConfig(invertible="nice"))
    with pytest.raises(UnsupportedError, match="no output embedding"):
        peft.get_peft_model(tr.BertModel(bert().config), SeqBottleneckConfig(invertible="nice"))
    with pytest.raises(UnsupportedError, match="opt"):
        config = tr.OPTConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=24)
        peft.get_peft_model(tr.OPTForCausalLM(config), SeqBottleneckConfig())
    for targets, what in ((["query"], "does not end"), (["0.output", "1.attention.output.dense"], "does not end"),
                          (["outputs"], "no module")):  # fmt: skip
        model = bert()
        names = list(model.state_dict())
        with pytest.raises(ConfigError, match=what):
            peft.get_peft_model(model, SeqBottleneckConfig(target_modules=targets))
        assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    model = peft.get_peft_model(bert(), SeqBottleneckConfig())
    with pytest.raises(ConfigError, match="no adapter 'lang'"):
        stack(model, ["lang", "default"])
