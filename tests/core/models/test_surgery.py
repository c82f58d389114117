"""Every op: cached equals uncached, saved equals loaded, a refused op changes nothing."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers as tr

from core.config.schema import ModelConfig
from core.errors import CheckpointError, ConfigError, UnsupportedError
from core.models import surgery
from core.models.blocks.layers import silence
from core.models.blocks.sidecar import Sidecar
from core.models.blocks.skip import skip_state
from core.models.blocks.slices import SlicedAttention, take, take_hidden
from core.models.linear_form import LowRankLinear
from core.models.load import load_model
from core.models.topology import ModelTopology

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
IDS = torch.arange(3, 15).view(1, -1).repeat(2, 1)
IDS[1] = IDS[1].flip(0)


def llama(**more):
    torch.manual_seed(0)
    config = {k: v for k, v in SIZES.items() if k != "tie_word_embeddings"} | {"tie_word_embeddings": True, **more}
    return tr.LlamaForCausalLM(tr.LlamaConfig(**config)).eval()


def qwen(**more):
    torch.manual_seed(0)
    return tr.Qwen2ForCausalLM(tr.Qwen2Config(**SIZES)).eval()


def gpt2(**more):
    torch.manual_seed(0)
    return tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=60, n_embd=32, n_layer=4, n_head=4, n_positions=64)).eval()


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def one_by_one(model, ids=IDS):
    """Logits of token-by-token decoding through the cache."""
    cache, found = tr.DynamicCache(config=model.config), []
    for position in range(ids.shape[1]):
        found.append(model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)


@torch.no_grad()
def noise(model, scale=0.05):
    """Random values everywhere, so that nothing that is lost on the way can stay unseen."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def drop(model):
    return surgery.apply(model, "drop_layers", layers=[0, 2])


def insert(model):
    surgery.apply(model, "insert_block", after=1)
    return surgery.apply(model, "insert_block", after=3)


def sublayers(model):
    surgery.apply(model, "sublayer", layer=0, which="attn", form="noop")
    surgery.apply(model, "sublayer", layer=1, which="mlp", form="noop")
    surgery.apply(model, "sublayer", layer=2, which="attn", form="linear")
    surgery.apply(model, "sublayer", layer=3, which="mlp", form="linear")
    return filled(model)


def filled(model):
    """Ops leave new maps without values."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if not torch.isfinite(parameter).all() or parameter.abs().max() > 1e3 or parameter.abs().max() == 0:
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def narrow(model):
    take(model, 0, channels=range(0, 48, 2), kv_heads=[1])
    take(model, 1, pairs=torch.tensor([[0, 3], [1, 2]]))
    surgery.apply(model, "slice_block", layer=2, head_dim_vo=4)
    return filled(model)


def hidden(model):
    take_hidden(model, range(0, 32, 2))
    return model


def forms(model):
    path = "model.layers.1.mlp.up_proj"
    return surgery.replace_linear(model, path, LowRankLinear.from_dense(model.get_submodule(path).weight, rank=5))


def sidecars(merge):
    def edit(model):
        for layer in (1, 3):
            surgery.apply(model, "sidecar", layer=layer, merge=merge)
            ModelTopology.of(model).stack[layer].merge.reset(torch.Generator().manual_seed(layer))
        return noise(model)

    edit.__name__ = f"sidecar_{merge}"
    return edit


def ladder(model):
    return surgery.apply(model, "ladder", layers=[0, 2, 3])


def skipping(model):
    return surgery.apply(model, "skip_ffn", threshold=2.0, cold_start=1, cold_end=3)


def mixed(model):
    surgery.apply(model, "sublayer", layer=0, which="attn", form="noop")
    surgery.apply(model, "sidecar", layer=2)
    ModelTopology.of(model).stack[2].merge.reset()
    surgery.apply(model, "drop_layers", layers=[1])
    return noise(model)


MERGES = ("lerp", "dlerp", "dlerpin", "slerp", "proj", "prog", "moe", "plain")
EDITS = [drop, insert, sublayers, narrow, hidden, forms, ladder, skipping, mixed, *map(sidecars, MERGES)]


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("base", [llama, qwen], ids=["llama", "qwen2"])
def test_cached_is_uncached_and_loaded_is_saved(edit, base, tmp_path):
    model = edit(base()).eval()
    expected = logits(model)
    assert torch.isfinite(expected).all() and expected.std() > 1e-3
    torch.testing.assert_close(one_by_one(model), expected, atol=1e-5, rtol=1e-5)
    generated = model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "graft" and [op["kind"] for op in config["graft"]["ops"]]
    assert config["base_config"]["num_hidden_layers"] == 4 and "graft" not in config["base_config"]
    again = load_model(ModelConfig(path=str(tmp_path)), None).eval()
    assert type(again).__name__ == type(model).__name__ and again.config.model_type == model.config.model_type
    assert torch.equal(logits(again), expected)
    assert torch.equal(again.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None), generated)
    again.save_pretrained(tmp_path / "twice")
    twice = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert {k: v for k, v in twice["base_config"].items() if config["base_config"].get(k, "absent") != v} == {}
    assert twice["graft"] == config["graft"]


@pytest.mark.parametrize("edit", [drop, insert, sidecars("lerp")], ids=lambda e: e.__name__)
def test_other_families_take_the_ops_that_do_not_look_inside(edit, tmp_path):
    model = edit(gpt2()).eval()
    torch.testing.assert_close(one_by_one(model), logits(model), atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(ModelConfig(path=str(tmp_path)), None).eval()), logits(model))


def test_masked_language_models_are_edited_too(tmp_path):
    torch.manual_seed(0)
    config = tr.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    model = surgery.apply(tr.BertForMaskedLM(config).eval(), "drop_layers", layers=[1])
    model.save_pretrained(tmp_path)
    surgery.register()
    again = tr.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert len(again.bert.encoder.layer) == 2
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_slots_follow_the_order_in_which_attentions_run():
    model = mixed(llama())
    topology = ModelTopology.of(model)
    assert [block.branch for block in topology.blocks] == ["", "pre", "exp", ""]
    assert [getattr(block.attn, "layer_idx", None) for block in topology.blocks] == [None, 0, 1, 2]
    assert model.config.num_hidden_layers == 3 == len(topology.stack)
    cache = tr.DynamicCache(config=model.config)
    model(input_ids=IDS, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == IDS.shape[1] and all(layer.keys is not None for layer in cache.layers)


def test_an_inserted_silent_block_is_the_identity():
    model = llama()
    before = logits(model)
    surgery.apply(model, "insert_block", after=2)
    assert not torch.allclose(logits(model), before)
    silence(ModelTopology.of(model).blocks[3])
    assert torch.equal(logits(model), before)


def test_pairs_left_out_equal_pairs_set_to_zero():
    """Slicing rotary pairs away is the same as zeroing them in queries and keys."""
    pairs = torch.tensor([[0, 3], [1, 2]])
    reference, d = llama(), 8
    attention = reference.model.layers[1].self_attn
    with torch.no_grad():
        for kv in range(2):
            kept = torch.cat([pairs[kv], pairs[kv] + d // 2]).tolist()
            gone = [i for i in range(d) if i not in kept]
            attention.k_proj.weight[[kv * d + i for i in gone]] = 0
            for head in (2 * kv, 2 * kv + 1):
                attention.q_proj.weight[[head * d + i for i in gone]] = 0
    model = llama()
    take(model, 1, pairs=pairs)
    assert isinstance(model.model.layers[1].self_attn, SlicedAttention)
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-6, rtol=1e-5)
    take(model, 1, pairs=torch.tensor([[1], [0]]))
    assert model.model.layers[1].self_attn.pairs.tolist() == [[3], [1]]
    torch.testing.assert_close(one_by_one(model), logits(model), atol=1e-5, rtol=1e-5)


def test_a_choice_of_everything_changes_nothing():
    model = llama()
    before = logits(model)
    take(model, 0, channels=range(48), kv_heads=[0, 1])
    take_hidden(model, range(32))
    assert torch.equal(logits(model), before)


def test_a_ladder_of_no_block_is_the_base():
    model = llama()
    before = logits(model)
    assert torch.equal(logits(surgery.apply(model, "ladder", layers=[])), before)


# ---- plain export ----------------------------------------------------------------------------------------------------


def uniform(model):
    for layer in range(4):
        take(model, layer, channels=range(0, 48, 3), kv_heads=[layer % 2])
    return model


@pytest.mark.parametrize("edit", [drop, insert, hidden, uniform], ids=lambda e: e.__name__)
def test_what_a_plain_config_can_say_is_exported(edit, tmp_path):
    model = edit(llama())
    expected = logits(model)
    surgery.export_hf(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    plain = tr.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain), expected)
    assert torch.equal(logits(model), expected) and surgery.ops_of(model)


def test_what_it_cannot_say_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="sidecar"):
        surgery.export_hf(sidecars("lerp")(llama()), tmp_path)
    model = llama()
    take(model, 0, channels=range(10))
    with pytest.raises(UnsupportedError, match="differ"):
        surgery.export_hf(model, tmp_path)


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED = [
    ("drop_layers", {"layers": [4]}, "no block 4"),
    ("drop_layers", {"layers": [0, 1, 2, 3]}, "every block"),
    ("insert_block", {"after": -1}, "no block -1"),
    ("sublayer", {"layer": 0, "which": "ffn", "form": "noop"}, "'ffn'"),
    ("slice_block", {"layer": 0, "n_heads": 3, "n_kv_heads": 2}, "3 heads on 2"),
    ("slice_block", {"layer": 0, "intermediate": 49}, "intermediate 49 of 48"),
    ("slice_block", {"layer": 0, "head_dim_qk": 3}, "odd"),
    ("slice_hidden", {"size": 33}, "33 of 32"),
    ("linear_form", {"path": "model.layers.0.mlp.up", "form": "lowrank", "spec": {"rank": 2}}, "no linear map"),
    ("linear_form", {"path": "model.layers.0.mlp.up_proj", "form": "low", "spec": {}}, "unknown linear form"),
    ("sidecar", {"layer": 1, "merge": "lurp"}, "unknown merge"),
    ("sidecar", {"layer": 1, "align": "mean"}, "unknown alignment"),
    ("sidecar", {"layer": 1, "align": "attention"}, "eager"),
    ("ladder", {"layers": [7]}, "no block 7"),
    ("skip_ffn", {"threshold": 0.9, "cold_start": 3, "cold_end": 3}, "cold_start"),
    ("resize", {}, "unknown surgery op"),
]


@pytest.mark.parametrize(("kind", "args", "what"), REFUSED, ids=[f"{k}-{w}" for k, _, w in REFUSED])
def test_a_refused_op_leaves_the_model_as_it_was(kind, args, what):
    model = llama()
    before, config, state = logits(model), copy.deepcopy(model.config.to_dict()), list(model.state_dict())
    with pytest.raises((ConfigError, UnsupportedError), match=what):
        surgery.apply(model, kind, **args)
    assert torch.equal(logits(model), before) and model.config.to_dict() == config
    assert list(model.state_dict()) == state and type(model) is tr.LlamaForCausalLM


def test_two_structures_in_one_place_are_refused():
    model = surgery.apply(llama(), "sidecar", layer=2)
    for kind, args in (
        ("sidecar", {"layer": 2}),
        ("ladder", {"layers": [3]}),
        ("skip_ffn", {"threshold": 0.9, "cold_start": 0, "cold_end": 2}),
    ):
        with pytest.raises(ConfigError, match="edited already"):
            surgery.apply(model, kind, **args)
    assert len(surgery.ops_of(model)) == 1 and isinstance(model.model.layers[2], Sidecar)
    with pytest.raises(UnsupportedError, match="cannot be sliced"):
        surgery.apply(model, "slice_block", layer=2, intermediate=3)
    for kind, args in (("ladder", {"layers": [1]}), ("skip_ffn", {"threshold": 0.9, "cold_start": 0, "cold_end": 1})):
        with pytest.raises(UnsupportedError, match="gpt2"):
            surgery.apply(gpt2(), kind, **args)


def test_other_formats_and_plain_loaders_say_so(tmp_path):
    drop(llama()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "graft": {**config["graft"], "version": 9}}))
    with pytest.raises(CheckpointError, match="format 9"):
        load_model(ModelConfig(path=str(tmp_path)), None)
    broken = {**config, "base_config": {**config["base_config"], "architectures": ["os"]}}
    path.write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match="'os'"):
        load_model(ModelConfig(path=str(tmp_path)), None)


def test_skipping_counts_and_rows_do_not_depend_on_each_other():
    model = surgery.apply(llama(), "skip_ffn", threshold=-1.0, cold_start=1, cold_end=4, warmup=0)
    state = skip_state(model)
    one_by_one(model)
    steps, rows = IDS.shape[1] - 1, IDS.shape[0]
    assert state.offered == steps * rows * 4 and int(state.skipped) == steps * rows * (4 - 1 - 1)
    model = surgery.apply(llama(), "skip_ffn", threshold=0.9, cold_start=0, cold_end=4, warmup=2)
    both = one_by_one(model)
    for row in range(2):
        torch.testing.assert_close(one_by_one(model, IDS[row : row + 1]), both[row : row + 1], atol=1e-5, rtol=1e-5)
