"""Whole runs of pre-training: a balanced mixture, a forecast from smaller runs, and what the run keeps of both."""

from __future__ import annotations

import json

import pytest

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import ConfigError, UnsupportedError
from core.training.run import train


def run_of(folder, *, with_=None, layers=1, **data):
    raw = {
        "app": "lm",
        "output": str(folder),
        "model": {"preset": "tiny", "tokenizer": "bpe:300"},
        "data": {
            "train": [
                {"reader": "embedded", "split": "train", "limit": 60, "with": {"lang": "de"}},
                {"reader": "embedded", "split": "train", "limit": 15, "with": {"lang": "en"}},
            ],
            "eval": [{"reader": "embedded", "split": "dev", "limit": 8}],
            "max_length": 32,
            **data,
        },
        "method": "lm.pretrain",
        "with": with_ or {},
        "train": {"max_steps": 6, "lr": 1e-3, "schedule": "wsd", "batch": {"size": 128, "unit": "tokens"}},
        "eval": {"every": 0, "select": "loss"},
        "checkpoint": {"every": 2},
    }
    return RunFolder.create(recipe_from(raw))


def test_a_run_keeps_its_mixture(tmp_path):
    run = run_of(tmp_path / "run", with_={"shares": {"de": 0.5, "en": 0.5}, "spikes": {"every": 2}})
    result = train(run.recipe(), run)
    parts = {part["lang"]: part for part in json.loads((run.path / "mixture.json").read_text())}
    assert abs(parts["de"]["share"] - 0.5) < 0.03 and parts["en"]["epochs"] > 2
    tokens = sum(part["tokens"] for part in parts.values())
    assert tokens == result["stages"][0]["tokens"]
    assert "wanted 50.0%" in (run.path / "log.txt").read_text()
    assert {"bits_per_byte", "bits_per_byte/de", "bits_per_byte/en"} <= set(result["after"].metrics)


def test_documents_apart_do_not_see_each_other(tmp_path):
    """A packed block's loss is that of its documents alone, and long documents are cut, not dropped."""
    import torch

    from apps.lm.methods.pretrain import apart
    from core.config.schema import ModelConfig
    from core.data.collate import Collator
    from core.data.segments import Segment
    from core.models.load import load_model
    from core.models.tokenizer import train_bpe
    from core.objectives.losses import token_loss

    tokenizer = train_bpe(["ein Hund und eine Katze"], 300)
    texts = ["ein Hund", "eine Katze und ein Hund", "Katze " * 20]
    dataset, stats = apart([[Segment(t, "document", True)] for t in texts], tokenizer, max_length=24)
    whole = [i for t in texts for i in [*tokenizer(t)["input_ids"], tokenizer.eos_token_id]]
    assert stats.tokens == len(whole) == sum(len(r.input_ids) for r in dataset.rows)
    assert any(len(b) > 1 for b in dataset.bins)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1).eval()

    def loss(items):
        batch = Collator(1)(items)
        labels = batch.pop("labels")
        with torch.no_grad():
            return float(token_loss(model(**batch, use_cache=False).logits, labels))

    packed = loss([dataset[i] for i in range(len(dataset))])
    assert packed == pytest.approx(sum(loss([row]) for row in dataset.rows), rel=1e-5)
    run = run_of(tmp_path / "run", with_={"apart": True})
    assert train(run.recipe(), run)["status"] == "done"


def test_three_runs_forecast_a_fourth(tmp_path, monkeypatch):
    from core.models import presets

    runs = []
    for number, width in enumerate((32, 64, 96)):
        monkeypatch.setitem(presets.PRESETS, "tiny", presets._llama(width, 2, 4, 2, 2 * width))
        run = run_of(tmp_path / f"r{number}")
        train(run.recipe(), run)
        runs.append(str(run.path))
    monkeypatch.setitem(presets.PRESETS, "tiny", presets._llama(128, 2, 4, 2, 256))
    last = run_of(tmp_path / "last", with_={"forecast": runs})
    train(last.recipe(), last)
    kept = json.loads((last.path / "forecast.json").read_text())
    sizes = [point["parameters"] for point in kept["runs"]] + [kept["parameters"]]
    assert sizes == sorted(sizes) and kept["tokens"] == 6 * 128
    assert kept["runs"][1]["parameters"] == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
    assert 0 < kept["bits_per_byte"] < 9 and "forecast:" in (last.path / "log.txt").read_text()


def test_a_run_that_cannot_be_forecast_from_says_so(tmp_path):
    unfinished = run_of(tmp_path / "unfinished")
    run = run_of(tmp_path / "run", with_={"forecast": [str(unfinished.path)]})
    with pytest.raises(ConfigError, match="not finished"):
        train(run.recipe(), run)


def test_shares_of_a_stream_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="with.shares and with.alpha count all documents"):
        run_of(tmp_path / "run", with_={"shares": {"de": 1, "en": 1}}, streaming=True)
