"""Trackers are optional, checked before anything is loaded, and get task metrics as well as the loss."""

from __future__ import annotations

import importlib.util
import sqlite3

import pytest

from core.config.load import recipe_from
from core.config.registry import TRACKERS
from core.config.run_folder import RunFolder
from core.errors import BackendUnavailable, ConfigError
from core.training import trackers
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


def tensorboard(folder):
    content = b"".join(path.read_bytes() for path in (folder / "tensorboard" / "parallel").glob("events.*"))
    return b"eval/bleu" in content, b"train/loss" in content


def wandb(folder):
    content = b"".join(path.read_bytes() for path in (folder / "wandb").glob("offline-run-*/run-*.wandb"))
    return b"eval/bleu" in content, b"train/loss" in content


def mlflow(folder):
    with sqlite3.connect(folder / "mlflow.db") as stored:
        named = {name for (name,) in stored.execute("select distinct key from metrics")}
        assert stored.execute("select name from runs").fetchall() == [("run-parallel",)]
    return "eval_bleu" in named, "loss" in named


def trackio(folder):
    rows = []
    for file in (folder / "trackio").glob("*.db"):
        with sqlite3.connect(file) as stored:
            rows += [bytes(row) for (row,) in stored.execute("select metrics from metrics")]
    return any(b"eval/bleu" in row for row in rows), any(b"train/loss" in row for row in rows)


READ = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}


@pytest.mark.parametrize("name", READ)
def test_task_metrics_reach_the_tracker_without_an_account(tmp_path, monkeypatch, name):
    if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
        pytest.skip(f"no {name} here")
    settings = ("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "TRACKIO_DIR")
    for variable in (*settings, "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run = RunFolder.create(recipe(tmp_path / "run", [name]))
    train(run.recipe(), run)
    assert READ[name](run.path / "trackers") == (True, True)


def test_an_account_is_left_to_decide(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    for key, mode in (("", "offline"), ("secret", None)):
        monkeypatch.setattr("os.environ", {"NETRC": str(tmp_path / "none"), "WANDB_API_KEY": key})
        trackers.set_up(["wandb"], run, "a")
        assert trackers.os.environ.get("WANDB_MODE") == mode
