"""Attention document by document is attention under the mask of packed rows."""

from __future__ import annotations

import pytest
import torch

from core.config.schema import AdapterConfig, ModelConfig
from core.data.collate import Collator
from core.data.encode import Encoded
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.models.varlen import borders_of, packed, takes_borders, varlen_attention
from core.objectives.losses import token_loss
from core.training.build import add_adapters


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["ab"], 260)


def batch():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (5, 11, 1, 8, 3):
        ids = torch.randint(4, 256, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, list(ids)))
    return Collator(1)([rows[:3], rows[3:]])


def test_borders():
    borders, longest = borders_of(torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]))
    assert borders.tolist() == [0, 3, 5, 6, 10, 12] and longest == 4


@pytest.mark.parametrize("adapters", [[], [AdapterConfig(r=4)]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(adapters, checkpointing, tokenizer):
    model = add_adapters(load_model(ModelConfig(preset="tiny"), tokenizer, seed=1), adapters).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    given = batch()
    labels = given.pop("labels")

    def gradients(borders):
        model.zero_grad()
        with packed(given, *borders) as inputs:
            loss = token_loss(model(**inputs, use_cache=False).logits, labels)
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, wanted = gradients((None, None))
    with varlen_attention(model) as on:
        assert on
        loss, found = gradients(borders_of(given["position_ids"]))
        masked, _ = gradients((None, None))
        wrong, _ = gradients((torch.tensor([0, 24, 48], dtype=torch.int32), 24))
    assert loss == pytest.approx(expected, rel=1e-6) and masked == pytest.approx(expected, rel=1e-6)
    assert abs(wrong - expected) > 1e-4, "borders are not looked at"
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert model.config._attn_implementation == "sdpa"


def test_padded_batches_take_the_usual_path(tokenizer):
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1).eval()
    rows = [Encoded(list(range(5, 5 + n)), list(range(5, 5 + n))) for n in (4, 9)]
    given = Collator(1)(rows)
    given.pop("labels")
    expected = model(**given, use_cache=False).logits
    with varlen_attention(model), packed(given, None, None) as inputs:
        assert torch.equal(model(**inputs, use_cache=False).logits, expected)


def test_models_that_hand_nothing_on_are_left_alone(tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, sliding_window=4,
        )
    )  # fmt: skip
    for other in (model, load_model(ModelConfig(preset="tiny-gpt2"), tokenizer)):
        assert not takes_borders(other)
        with varlen_attention(other) as on:
            assert not on
