"""A run from recipe to folder: two stages that learn, a resume that changes nothing, a matryoshka loss."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from apps.embeddings import EmbeddingPipeline
from core.config.load import load_recipe
from core.config.run_folder import RunFolder
from core.errors import ConfigError, DataError, GraftError
from core.training.run import train


def recipe(folder, **changes):
    body = {
        "version": 1,
        "app": "embeddings",
        "seed": 3,
        "output": str(folder / "run"),
        "model": {
            "preset": "tiny",
            "tokenizer": "bpe:512",
            "edits": [{"kind": "embedding", "pooling": "latent", "latents": 8}],
        },
        "data": {
            "train": [{"reader": "embedded"}],
            "eval": [{"reader": "embedded", "split": "test"}],
            "max_length": 48,
        },
        "stages": [
            {
                "name": "one",
                "method": "embeddings.stage1",
                "with": {"negatives": 1, "temperature": 0.1, "matryoshka": [16]},
            },
            {"name": "two", "method": "embeddings.stage2", "with": {"negatives": 2, "temperature": 0.1}},
        ],
        "train": {"max_steps": 6, "lr": 5e-4, "batch": {"size": 16, "unit": "rows"}},
        "eval": {"metrics": ["ndcg@10"], "every": 0},
        "checkpoint": {"every": 3, "mode": "sync"},
        **changes,
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(body))
    return load_recipe(file)


def losses(run):
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = recipe(tmp_path_factory.mktemp("whole"))
    run = RunFolder.create(made)
    return made, run, train(made, run)


def test_two_stages_learn_and_are_served(whole):
    made, run, result = whole
    assert result["status"] == "done" and [stage["method"] for stage in result["stages"]] == [
        "embeddings.stage1",
        "embeddings.stage2",
    ]
    found = losses(run)
    assert len(found) == 12 and found[5] < found[0] and np.isfinite(found).all()
    with EmbeddingPipeline.from_pretrained(run.path, device="cpu") as embed:
        assert embed(["a card"]).shape == (1, embed.dimension)
        assert embed.config.template == "lines"


@pytest.mark.slow
def test_a_resume_changes_nothing(tmp_path, whole):
    _, run, _ = whole
    other = recipe(tmp_path)
    second = RunFolder.create(other)
    from apps.embeddings.trainer import ContrastiveTrainer

    plain, calls = ContrastiveTrainer.training_step, []

    def breaks(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the power went")
        return plain(self, *args, **kwargs)

    ContrastiveTrainer.training_step = breaks
    try:
        with pytest.raises(RuntimeError, match="power"):
            train(other, second)
    finally:
        ContrastiveTrainer.training_step = plain
    train(other, second, resume=True)
    one, two = (EmbeddingPipeline.from_pretrained(r.path, device="cpu")(["a lost card"]) for r in (run, second))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_bad_recipes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pooling"):
        recipe(
            tmp_path,
            model={"preset": "tiny", "tokenizer": "bpe:512", "edits": [{"kind": "embedding", "poolin": "mean"}]},
        )
    made = recipe(tmp_path, train={"max_steps": 2, "batch": {"size": 512, "unit": "rows"}})
    with pytest.raises(DataError, match="fills a batch of 512"):
        train(made, RunFolder.create(made))
    broken = recipe(tmp_path, output=str(tmp_path / "b"), stages=[{"name": "g", "method": "embeddings.graded"}])
    with pytest.raises(GraftError, match="pairs with a score"):
        train(broken, RunFolder.create(broken))
