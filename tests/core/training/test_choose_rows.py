"""Rows chosen for a small model: worth and distance by hand, and what the model itself says of a row."""

from __future__ import annotations

import pytest
import torch

from core.config.schema import ModelConfig
from core.data.encode import IGNORE, Encoded
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.training.choose_rows import choose, k_centre, look_at, quality


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text to learn from"], 300)


def rows(*lengths):
    return [Encoded([5 + (7 * i + n) % 200 for i in range(n)], [IGNORE] * 2 + [9] * (n - 2)) for n in lengths]


def test_quality_is_the_order_of_the_losses():
    assert quality(torch.tensor([2.0, 1.0, 3.0, 4.0])).tolist() == [0.75, 1.0, 0.5, 0.25]
    assert quality(torch.tensor([2.0, 1.0, 3.0, 4.0]), "high").tolist() == [0.5, 0.25, 0.75, 1.0]


def test_centres_on_a_line_by_hand():
    """Places 0, 1, 2, 10: with equal weights the ends come first, then the point farthest from both."""
    states = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert k_centre(states, torch.tensor([1.0, 0.9, 0.9, 0.9]), 3) == [0, 3, 2]
    # a far row of little worth gives way: 0.1 · 10 < 0.9 · 2, then 0.1 · 8 < 0.9 · 1
    assert k_centre(states, torch.tensor([1.0, 0.9, 0.9, 0.1]), 3) == [0, 2, 1]
    assert k_centre(states, torch.ones(4), 9) == [0, 3, 2, 1]


def test_copies_are_taken_last():
    states = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0], [-1.0, 0.0]])
    assert set(k_centre(states, torch.ones(7), 3)) == {0, 5, 6}


def test_the_loss_of_a_row_is_its_own_whatever_stands_beside_it(tokenizer):
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3).train()
    data = rows(5, 17, 9)
    losses, states = look_at(model, data)
    assert model.training
    model.eval()
    for row, loss, state in zip(data, losses, states):
        out = model(torch.tensor([row.input_ids]), output_hidden_states=True)
        want = torch.nn.functional.cross_entropy(out.logits[0, 1:-1], torch.tensor(row.labels[2:]))
        assert float(loss) == pytest.approx(float(want.detach()), rel=1e-4)
        mean = out.hidden_states[-1][0].mean(0)
        assert torch.allclose(state, mean / mean.norm(), atol=1e-5)


def test_the_share_is_kept_of_the_rows_that_fit(tokenizer):
    data = [*rows(5, 17, 9, 12), None, *rows(20, 8)]
    base = ModelConfig(preset="tiny")
    kept = choose(data, base, tokenizer, share=0.5, seed=1)
    assert len(kept) == 3 and kept == sorted(kept) and 4 not in kept
    losses, _ = look_at(load_model(base, tokenizer, seed=1), [row for row in data if row is not None])
    best = [i for i in range(7) if i != 4][int(losses.argmin())]
    assert best in kept
    assert choose(data, base, tokenizer, share=1.0, seed=1) == [0, 1, 2, 3, 5, 6]
    assert choose([None], base, tokenizer, share=0.5) == []
