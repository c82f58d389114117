"""Packed rows do not see each other: losses and gradients are those of separate rows, logits do not move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core.config.schema import ModelConfig
from core.data.collate import Collator
from core.data.encode import IGNORE, Encoded
from core.models.load import load_model
from core.models.tokenizer import train_bpe


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["ab"], 260)


def rows(seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for length, given in ((5, 2), (11, 4), (1, 0), (8, 0)):
        ids = torch.randint(4, 256, (length,), generator=generator).tolist()
        out.append(Encoded(ids, [IGNORE] * given + ids[given:]))
    return out


def model_of(preset: str, attention: str, tokenizer):
    return load_model(ModelConfig(preset=preset, attention=attention), tokenizer, seed=1).eval()


def summed_loss(model, batch: dict) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum", ignore_index=IGNORE)


def gradients(model, batches: list[dict]):
    model.zero_grad()
    total = sum(summed_loss(model, batch) for batch in batches)
    total.backward()
    return total.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


EVERY = [(p, a) for p in ("tiny", "tiny-gpt2") for a in ("eager", "sdpa")]


@pytest.mark.parametrize("preset,attention", EVERY)
def test_loss_and_gradients(preset, attention, tokenizer):
    model = model_of(preset, attention, tokenizer)
    collate = Collator(tokenizer.pad_token_id)
    packed_loss, packed = gradients(model, [collate([rows()[:2], rows()[2:]])])
    loss, separate = gradients(model, [Collator(tokenizer.pad_token_id, multiple=1)([r]) for r in rows()])
    padded_loss, padded = gradients(model, [collate(rows())])
    assert packed_loss == pytest.approx(loss, rel=1e-5) and padded_loss == pytest.approx(loss, rel=1e-5)
    for other in (packed, padded):
        assert other.keys() == separate.keys()
        for name, gradient in separate.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


FLEX = pytest.param("tiny", "flex_attention", marks=pytest.mark.slow)  # it is compiled first


@pytest.mark.parametrize("preset,attention", [*EVERY, FLEX])
def test_another_document_moves_nothing(preset, attention, tokenizer):
    model = model_of(preset, attention, tokenizer)
    collate = Collator(tokenizer.pad_token_id)
    first, second = collate([rows()]), collate([[*rows(1)[:1], *rows()[1:]]])
    changed = len(rows()[0].input_ids)
    assert not torch.equal(first["input_ids"][:, :changed], second["input_ids"][:, :changed])
    for batch in (first, second):
        batch.pop("labels")
    with torch.no_grad():
        before, after = (model(**batch, use_cache=False).logits for batch in (first, second))
        assert torch.equal(before[:, changed:], after[:, changed:])
        assert not torch.allclose(before[:, :changed], after[:, :changed])
        # the test can fail: with a mask of ones the documents do attend to each other
        ones = torch.ones_like(first["input_ids"])
        before, after = (model(**b, attention_mask=ones, use_cache=False).logits for b in (first, second))
        assert not torch.equal(before[:, changed:], after[:, changed:])


@pytest.mark.gpu
def test_loss_and_gradients_of_flex_attention_on_a_gpu(tokenizer):
    """On a CPU it has no backward pass, and torch 2.13 generates C++ for some masks that does not compile."""
    model = model_of("tiny", "flex_attention", tokenizer).cuda()
    collate = Collator(tokenizer.pad_token_id)
    there = [{n: t.cuda() for n, t in collate([[r]]).items()} for r in rows()]
    packed_loss, packed = gradients(model, [{n: t.cuda() for n, t in collate([rows()]).items()}])
    loss, separate = gradients(model, there)
    assert packed_loss == pytest.approx(loss, rel=1e-4)
    for name, gradient in separate.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
