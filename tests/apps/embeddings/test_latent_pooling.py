"""Latent attention against plain float64 arithmetic; padding, order, instructions, folders."""

from __future__ import annotations

import math

import pytest
import torch

from core.errors import AppInputError, ConfigError

pooling_module = pytest.importorskip("apps.embeddings.latent")
LatentAttentionPooling = pooling_module.LatentAttentionPooling


@pytest.fixture
def pooling():
    torch.manual_seed(0)
    made = LatentAttentionPooling(16, latents=7, heads=4)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


def by_hand(pooling, states, mask):
    """Sums and loops over heads; layer norm and GELU written out."""

    def norm(x, layer):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    queries = norm(states, pooling.norm_states) @ pooling.query.weight.T
    both = norm(pooling.dictionary, pooling.norm_latents) @ pooling.key_value.weight.T
    keys, values, size = both[:, :16], both[:, 16:], 4
    found = torch.zeros_like(states)
    for head in range(4):
        part = slice(head * size, (head + 1) * size)
        weights = torch.einsum("nld,rd->nlr", queries[..., part], keys[:, part]) / math.sqrt(size)
        weights = weights.exp() / weights.exp().sum(-1, keepdim=True)
        found[..., part] = torch.einsum("nlr,rd->nld", weights, values[:, part])
    hidden = states + found @ pooling.out.weight.T
    inner = norm(hidden, pooling.norm_hidden) @ pooling.gate_up.weight.T + pooling.gate_up.bias
    gate, up = inner[..., :64], inner[..., 64:]
    gated = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up
    final = hidden + gated @ pooling.down.weight.T + pooling.down.bias
    return torch.stack([final[i][mask[i].bool()].mean(0) for i in range(len(final))])


def pooled(pooling, states, mask, **features):
    return pooling({"token_embeddings": states, "attention_mask": mask, **features})["sentence_embedding"]


def test_equals_the_formula(pooling):
    states = torch.randn(3, 5, 16, dtype=torch.double)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    torch.testing.assert_close(pooled(pooling, states, mask), by_hand(pooling, states, mask), rtol=0, atol=1e-10)


def test_untrained_is_the_mean():
    states, mask = torch.randn(2, 4, 16), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = pooled(LatentAttentionPooling(16, 5, 2), states, mask)
    torch.testing.assert_close(found[0], states[0, :3].mean(0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_order_change_nothing(pooling, side):
    states = torch.randn(2, 4, 16, dtype=torch.double)
    mask = torch.ones(2, 4, dtype=torch.long)
    alone = pooled(pooling, states, mask)
    rubbish = torch.full((2, 3, 16), 1e3, dtype=torch.double)
    order = [rubbish, states] if side == "left" else [states, rubbish]
    blank = torch.zeros(2, 3, dtype=torch.long)
    masks = [blank, mask] if side == "left" else [mask, blank]
    torch.testing.assert_close(pooled(pooling, torch.cat(order, 1), torch.cat(masks, 1)), alone)
    torch.testing.assert_close(pooled(pooling, states.flip(0), mask), alone.flip(0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_instruction_is_not_pooled(pooling, side):
    states = torch.randn(1, 6, 16, dtype=torch.double)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]]) if side == "left" else torch.tensor([[1, 1, 1, 1, 0, 0]])
    text = torch.tensor([[0, 0, 0, 0, 1, 1]]) if side == "left" else torch.tensor([[0, 0, 1, 1, 0, 0]])
    torch.testing.assert_close(pooled(pooling, states, mask, prompt_length=2), pooled(pooling, states, text))
    assert not torch.allclose(pooled(pooling, states, mask, prompt_length=2), pooled(pooling, states, mask))


def test_nothing_to_pool_is_an_error(pooling):
    states = torch.randn(2, 3, 16, dtype=torch.double)
    with pytest.raises(AppInputError, match=r"rows \[1\]"):
        pooled(pooling, states, torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_heads_must_divide():
    with pytest.raises(ConfigError, match="5 heads do not divide 16"):
        LatentAttentionPooling(16, heads=5)


def test_usage_is_a_distribution_over_latents(pooling):
    states, mask = torch.randn(2, 5, 16, dtype=torch.double), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    usage = pooling.usage(states, mask)
    assert usage.shape == (2, 7)
    torch.testing.assert_close(usage.sum(1), torch.ones(2, dtype=torch.double))
    torch.testing.assert_close(pooling.usage(states[:1, :3], mask[:1, :3])[0], usage[0])


def test_latents_are_not_copied_for_each_text():
    pooling = LatentAttentionPooling(64, latents=512, heads=8)
    asked, keys, values = pooling._asked(torch.randn(32, 4, 64))
    assert keys.shape[0] == values.shape[0] == asked.shape[0] == 1
