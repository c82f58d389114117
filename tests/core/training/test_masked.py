"""Masked language modelling: what is hidden, what is told, and that adapters on an encoder learn a language."""

from __future__ import annotations

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import ConfigError
from core.inference.load import load_for_serving
from core.training.masked import corrupt
from core.training.run import train


def test_a_share_is_chosen_and_most_of_it_hidden():
    torch.manual_seed(0)
    ids = torch.randint(10, 1000, (50, 400))
    eligible = torch.ones_like(ids, dtype=torch.bool)
    eligible[:, 0] = False
    out, labels = corrupt(ids, eligible, 0.15, 3, 1000)
    chosen = labels != -100
    assert not chosen[:, 0].any() and 0.14 < chosen.float().mean() < 0.16
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(out[~chosen], ids[~chosen])
    hidden = (out == 3) & chosen
    kept = (out == ids) & chosen
    assert 0.77 < hidden.sum() / chosen.sum() < 0.83 and 0.08 < kept.sum() / chosen.sum() < 0.12


LINES = ["the cat sits on the mat", "the dog sits on the mat", "a cat sees the dog", "a dog sees the cat"] * 8


def recipe(tmp_path, output, steps=60, method="lm.mlm", packing=False, **model):
    (tmp_path / "train.txt").write_text("\n".join(LINES))
    return recipe_from(
        {
            "app": "lm",
            "output": str(output),
            "model": {"preset": "tiny-bert", "tokenizer": "bpe:300", **model},
            "data": {
                "train": [{"reader": "text", "path": str(tmp_path / "train.txt"), "with": {"unit": "line"}}],
                "eval": [{"reader": "text", "path": str(tmp_path / "train.txt"), "with": {"unit": "line"}, "limit": 4}],
                "max_length": 32,
                "packing": packing,
            },
            "method": method,
            "train": {"max_steps": steps, "lr": 1e-2, "batch": {"size": 16}},
            "eval": {"every": 0, "metrics": ["perplexity"]},
        }
    )


@pytest.mark.parametrize("adapters", [[], [{"kind": "seq_bottleneck", "with": {"reduction_factor": 4}}]])
def test_an_encoder_learns_and_is_served(tmp_path, adapters):
    run = RunFolder.create(recipe(tmp_path, tmp_path / "run", adapters=adapters))
    result = train(run.recipe(), run)
    before, after = (result[when].value("perplexity") for when in ("before", "after"))
    assert after < (0.2 if not adapters else 0.9) * before
    served, _, _ = load_for_serving(str(run.path))
    assert "ForMaskedLM" in type(served.get_base_model() if adapters else served).__name__


def test_mistakes_are_told(tmp_path):
    run = RunFolder.create(recipe(tmp_path, tmp_path / "packed", packing=True))
    with pytest.raises(ConfigError, match="share a sequence"):
        train(run.recipe(), run)
    run = RunFolder.create(recipe(tmp_path, tmp_path / "causal", preset="tiny"))
    with pytest.raises(ConfigError, match="cannot fill in"):
        train(run.recipe(), run)
