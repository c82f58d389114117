"""Tokenizer, added tokens, topology, linear forms and rotary phases."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch

from core.config.schema import ModelConfig
from core.errors import ConfigError, DataError, MergeError, UnsupportedModelError
from core.models import linear
from core.models.load import load_model, load_tokenizer
from core.models.rope import keep_exact
from core.models.tokenizer import CHAT_MARKERS, add_tokens, is_tied, train_bpe, write_tied
from core.models.topology import ModelTopology

TEXT = ["Das ist ein Haus. This is a house.", "Der Hund sieht die Katze. The dog sees the cat."] * 3


@pytest.fixture
def tokenizer():
    return train_bpe(TEXT, 300)


def build(tokenizer, preset="tiny", tied=True):
    model = load_model(ModelConfig(preset=preset), tokenizer, seed=1).eval()
    if not tied:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone() * 1.5)
        write_tied(model)
    return model


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def test_every_text_comes_back(tokenizer):
    rng = random.Random(0)
    texts = ["日本語 und 🙂", "  two  spaces ", "\n\ttabs", "e\u0301", ""]
    texts += [
        "".join(chr(rng.choice([rng.randint(32, 126), rng.randint(0xA1, 0x2FFF)])) for _ in range(30))
        for _ in range(50)
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_specials_are_distinct_and_nothing_is_added(tokenizer):
    assert tokenizer.eos_token_id != tokenizer.pad_token_id and tokenizer.bos_token_id is None
    assert tokenizer("Haus")["input_ids"] == tokenizer("Haus", add_special_tokens=False)["input_ids"]
    assert len(tokenizer) == 300
    for marker in CHAT_MARKERS:
        assert len(tokenizer(marker)["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("a<|im_end|>")["input_ids"], skip_special_tokens=True) == "a"


def test_training_is_deterministic_and_needs_text_and_room(tokenizer):
    assert train_bpe(iter(TEXT), 300).get_vocab() == tokenizer.get_vocab()
    assert load_tokenizer(ModelConfig(tokenizer="bpe:300"), TEXT).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ConfigError, match="at least 260"):
        train_bpe(TEXT, 259)
    with pytest.raises(DataError, match="no text"):
        train_bpe([], 300)


# ---- added tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_train_and_survive_a_reload(tokenizer, tmp_path, preset, tied):
    model = build(tokenizer, preset, tied)
    words = torch.tensor([tokenizer("Das ist ein Haus.")["input_ids"]])
    before = model(words).logits.detach()
    tables = [w.weight.detach().clone() for w in (model.get_input_embeddings(), model.get_output_embeddings())]

    new = add_tokens(model, tokenizer, ["<a>", "<b>", "<c>", "<d>", "<e>"])
    assert new == [300, 301, 302, 303, 304] and len(tokenizer) == 305
    assert tokenizer("Haus<c>Haus")["input_ids"].count(302) == 1
    assert is_tied(model) == tied == model.config.tie_word_embeddings
    torch.testing.assert_close(model(words).logits[..., :300], before, atol=1e-6, rtol=1e-6)
    for module, old in zip((model.get_input_embeddings(), model.get_output_embeddings()), tables):
        assert torch.equal(module.weight[:300], old)
        added, mean, spread = module.weight[300:], old.mean(0), old.std()
        assert (added - mean).norm(dim=1).max() < 0.1 * spread * math.sqrt(old.shape[1])
        assert len({tuple(r.tolist()) for r in added}) == 5, "new rows differ"

    text = torch.tensor([tokenizer("<a>Das<b>ist<c>ein<d>Haus.<e>")["input_ids"]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(text, labels=text).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    loaded_tokenizer = load_tokenizer(config)
    loaded = load_model(config, loaded_tokenizer).eval()
    assert loaded_tokenizer("<a>Das<b>ist<c>ein<d>Haus.<e>")["input_ids"] == text[0].tolist()
    assert torch.equal(loaded(text).logits, model(text).logits)
    assert is_tied(loaded) == tied


@pytest.mark.parametrize("grows", [True, False])
def test_a_stale_flag_does_not_lose_the_head(tokenizer, tmp_path, grows):
    """A head that was trained apart while the config still says tied, as modules_to_save leaves it."""
    model = build(tokenizer, tied=False)
    if not grows:
        model.resize_token_embeddings(320, mean_resizing=False)
    model.config.tie_word_embeddings = True
    head = model.get_output_embeddings().weight[:300].detach().clone()
    new = add_tokens(model, tokenizer, ["<n>"])
    assert not is_tied(model) and model.config.tie_word_embeddings is False
    assert torch.equal(model.get_output_embeddings().weight[:300], head)
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(path=str(tmp_path)), tokenizer).eval()
    assert torch.equal(loaded(torch.tensor([new])).logits, model(torch.tensor([new])).logits)


def test_known_tokens_are_left_alone(tokenizer):
    model = build(tokenizer)
    old = model.get_input_embeddings().weight.detach().clone()
    assert add_tokens(model, tokenizer, ["<|im_end|>", "<n>", "<n>"]) == [3, 300, 300]
    assert torch.equal(model.get_input_embeddings().weight[:300], old)
    assert add_tokens(model, tokenizer, ["<n>"]) == [300] and len(tokenizer) == 301


def test_a_table_with_spare_rows_keeps_its_size(tokenizer):
    model = build(tokenizer)
    model.resize_token_embeddings(320, mean_resizing=False)
    add_tokens(model, tokenizer, ["<n>"])
    assert model.get_input_embeddings().weight.shape[0] == 320


# ---- topology and linear forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
def test_the_topology_names_every_linear_map_once(tokenizer, preset):
    model = build(tokenizer, preset)
    topology = ModelTopology.of(model)
    assert len(topology.blocks) == 2 and topology.head_tied
    parts = [getattr(b, n) for b in topology.blocks for n in ("q", "k", "v", "qkv", "o", "gate", "up", "down")]
    named = {id(p) for p in parts if p is not None}
    found = {id(m) for m in model.modules() if linear.is_linear_like(m)}
    assert named | {id(topology.head)} == found
    hidden = torch.randn(1, 3, 64)
    assert topology.final_norm(hidden).shape == hidden.shape
    assert not ModelTopology.of(build(tokenizer, preset, tied=False)).head_tied


def test_an_unknown_family_is_named():
    class Model:
        class config:
            model_type = "martian"

    with pytest.raises(UnsupportedModelError, match="martian") as error:
        ModelTopology.of(Model())
    assert "llama" in error.value.hint


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
def test_a_dense_weight_is_the_map(tokenizer, preset):
    block = ModelTopology.of(build(tokenizer, preset)).blocks[0]
    for module in (block.up, block.down):
        inside, outside = linear.features(module)
        weight = linear.dense_weight(module)
        assert weight.shape == (outside, inside) and linear.storage_bytes(module) == 4 * inside * outside
        x = torch.randn(2, inside)
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(module(x), x @ weight.T + bias, atol=1e-5, rtol=1e-5)
        assert linear.dense_weight(module, torch.bfloat16).dtype == torch.bfloat16
        linear.set_dense_weight(module, 2 * weight.clone())
        torch.testing.assert_close(
            module(x), 2 * (x @ (linear.dense_weight(module).T / 2)) + bias, atol=1e-5, rtol=1e-5
        )
        with pytest.raises(MergeError):
            linear.set_dense_weight(module, weight[:-1])
    assert not linear.is_linear_like(torch.nn.LayerNorm(4))


# ---- rotary phases ---------------------------------------------------------------------------------------------------


def rotary(context: int, protect: bool):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=context,
    )
    model = LlamaModel(config)
    return keep_exact(model) if protect else model


def phase_error(model, last: int) -> float:
    """Largest error of cos and sin against fp64 over positions up to `last`."""
    positions = torch.cat([torch.arange(0, last, 97), torch.arange(last - 64, last)])[None]
    cos, sin = model.rotary_emb(torch.zeros(1, dtype=torch.float32), positions)
    frequencies = 10000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    angles = positions[..., None].double() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return max((cos - angles.cos()).abs().max().item(), (sin - angles.sin()).abs().max().item())


@pytest.mark.parametrize("context", [4096, 131072])
def test_phases_are_exact_after_conversion(context):
    model = rotary(context, protect=True).to(torch.bfloat16)
    assert model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert phase_error(model, context) < 1e-3
    assert phase_error(copy.deepcopy(model).to(torch.float32).half(), context) < 1e-3
    assert phase_error(rotary(context, protect=False).to(torch.bfloat16), context) > 0.5, "unprotected phases are wrong"


def test_short_models_are_bit_for_bit_those_of_transformers():
    plain, kept = (rotary(4096, protect) for protect in (False, True))
    positions, x = torch.arange(4096)[None], torch.zeros(1)
    for a, b in zip(plain.rotary_emb(x, positions), kept.rotary_emb(x, positions)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_loaded_model_is_protected(tokenizer, tmp_path, dtype):
    build(tokenizer).save_pretrained(tmp_path)
    for config in (ModelConfig(path=str(tmp_path), dtype=dtype), ModelConfig(preset="tiny", dtype=dtype)):
        model = load_model(config, tokenizer)
        expected = 10000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
        for converted in (model, model.to(torch.bfloat16), model.half()):
            frequencies = converted.model.rotary_emb.inv_freq
            assert frequencies.dtype == torch.float32
            torch.testing.assert_close(frequencies.double(), expected, rtol=1e-6, atol=0)
