"""Trackers are optional, checked before anything is loaded, and get task metrics as well as the loss."""

from __future__ import annotations

import importlib.util

import pytest

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import BackendUnavailable, ConfigError
from core.training.run import train

SOURCE = {"reader": "embedded", "with": {"src": "de", "tgt": "en"}}


def recipe(output, trackers):
    return recipe_from(
        {
            "app": "translation",
            "output": str(output),
            "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
            "data": {
                "train": [{**SOURCE, "split": "train", "limit": 16}],
                "eval": [{**SOURCE, "split": "dev", "limit": 2}],
                "max_length": 160,
            },
            "method": "translation.parallel",
            "train": {"max_steps": 2, "batch": {"size": 8}},
            "eval": {"every": 1, "select": "bleu", "metrics": ["bleu"], "sampling": {"max_new_tokens": 2}},
            "trackers": trackers,
        }
    )


def test_an_unknown_or_missing_tracker_is_refused_at_once(monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        recipe("x", ["wanbd"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"graft\[trackers\]"):
        recipe("x", ["tensorboard"])


def test_task_metrics_reach_the_trackers(tmp_path, monkeypatch):
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        pytest.skip("no TensorBoard here (graft[trackers])")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run = RunFolder.create(recipe(tmp_path / "run", ["tensorboard"]))
    train(run.recipe(), run)
    written = list((run.path / "trackers" / "tensorboard" / "parallel").glob("events.*"))
    content = b"".join(path.read_bytes() for path in written)
    assert b"eval/bleu" in content and b"train/loss" in content
