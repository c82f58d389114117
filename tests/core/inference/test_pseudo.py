"""Pseudo-log-likelihoods against hiding one token at a time by hand."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tr

from core.inference.pseudo import is_masked, mask_id, pseudo_log_likelihoods, pseudo_perplexity
from core.models.tokenizer import train_bpe

TEXTS = ["Das ist ein Haus.", "Der Hund sieht die Katze und geht.", "a"]


@pytest.fixture
def tokenizer():
    return train_bpe(TEXTS * 3, 300)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = tr.BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    return tr.BertForMaskedLM(config)


def by_hand(model, tokenizer, text):
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    total = 0.0
    model.eval()
    for place in range(len(ids) - 1):
        hidden = torch.tensor([ids])
        hidden[0, place] = mask_id(tokenizer)
        with torch.no_grad():
            total += float(model(input_ids=hidden).logits[0, place].log_softmax(-1)[ids[place]])
    return total, len(ids) - 1


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_it_is_every_token_hidden_in_turn(model, tokenizer, batch):
    model.train()
    found = pseudo_log_likelihoods(model, tokenizer, TEXTS, batch=batch)
    assert model.training
    for (total, count), text in zip(found, TEXTS):
        expected, tokens = by_hand(model, tokenizer, text)
        assert count == tokens and total == pytest.approx(expected, abs=1e-4)
    totals = [by_hand(model, tokenizer, text) for text in TEXTS]
    mean = sum(t for t, _ in totals) / sum(n for _, n in totals)
    assert pseudo_perplexity(model, tokenizer, TEXTS) == pytest.approx(math.exp(-mean), rel=1e-4)


def test_a_long_text_is_read_in_pieces_and_counted_whole(model, tokenizer):
    long = " ".join(TEXTS) * 4
    ((_, count),) = pseudo_log_likelihoods(model, tokenizer, [long])
    assert count == len(tokenizer(long)["input_ids"]) > 30


def test_which_models_fill_in_and_what_hides(model, tokenizer):
    from peft import get_peft_model

    from core.adapters import SeqBottleneckConfig

    assert is_masked(model) and is_masked(get_peft_model(model, SeqBottleneckConfig(reduction_factor=4)))
    assert not is_masked(tr.LlamaForCausalLM(tr.LlamaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)))  # fmt: skip
    assert mask_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    assert mask_id(tokenizer) == tokenizer.mask_token_id != tokenizer.pad_token_id
