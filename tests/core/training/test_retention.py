"""The loss on what the base knew: measured on the text that the recipe names, before and after."""

from __future__ import annotations

import json

import pytest

from core.config.load import recipe_from, smoke
from core.config.run_folder import RunFolder
from core.errors import ConfigError, DataError
from core.models.tokenizer import train_bpe
from core.training.retention import retention_rows
from core.training.run import train

TEXT = "The house is old and the garden is green. "


def recipe(tmp_path, retention, **model):
    return recipe_from(
        {
            "app": "translation",
            "output": str(tmp_path / "run"),
            "model": {"preset": "tiny", "tokenizer": "bpe:300", **model},
            "data": {
                "train": [{"reader": "embedded", "split": "train", "limit": 8, "with": {"src": "de", "tgt": "en"}}],
                "max_length": 128,
            },
            "method": "translation.parallel",
            "train": {"max_steps": 2, "lr": 1e-2, "batch": {"size": 4}},
            "eval": {"every": 0, "retention": retention},
        }
    )


def test_a_run_measures_the_named_text(tmp_path):
    (tmp_path / "known.txt").write_text(TEXT * 30)
    sources = [{"reader": "text", "path": str(tmp_path / "known.txt")}]
    run = RunFolder.create(recipe(tmp_path, sources))
    train(run.recipe(), run)
    found = json.loads((run.path / "eval" / "retention.json").read_text())
    assert found["before"] > 1 and found["after"] > 0 and found["before"] != found["after"]
    assert "etention" in (run.path / "report.html").read_text()


def test_long_documents_are_cut_and_nothing_is_counted_twice(tmp_path):
    (tmp_path / "known.txt").write_text(TEXT * 50)
    tokenizer = train_bpe([TEXT], 300)
    made = recipe(tmp_path, [{"reader": "text", "path": str(tmp_path / "known.txt")}])
    rows = retention_rows(made, tokenizer)
    ids = [i for n in range(len(rows)) for i in rows[n].input_ids]
    assert ids == [*tokenizer((TEXT * 50).strip())["input_ids"], tokenizer.eos_token_id]
    assert max(len(rows[n].input_ids) for n in range(len(rows))) == 128
    assert retention_rows(recipe(tmp_path, False), tokenizer) is None
    assert retention_rows(recipe(tmp_path, True), tokenizer) is None
    (tmp_path / "known.txt").write_text(" \n")
    with pytest.raises(DataError):
        retention_rows(made, tokenizer)


def test_its_sources_are_checked_and_have_a_small_form(tmp_path):
    with pytest.raises(ConfigError, match="unknown reader 'txt'"):
        recipe(tmp_path, [{"reader": "txt", "path": "x"}])
    small = smoke(recipe(tmp_path, [{"reader": "text", "path": str(tmp_path / "absent.txt")}]))
    assert small.eval.retention[0].reader == "embedded"
