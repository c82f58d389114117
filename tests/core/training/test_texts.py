"""The training text is read only as far as a tokenizer or a calibration looks at it."""

from __future__ import annotations

import json

import pytest

from apps.lm import data as readers
from apps.lm.data import TextExample
from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.models.tokenizer import train_bpe
from core.statistics.calibration import token_batches
from core.training.run import _Texts, plan, train

ROWS = [f"Row {n} says what {n * n} is." for n in range(3000)]


@pytest.fixture
def read(monkeypatch):
    """The documents that were made of rows so far."""
    found: list[str] = []
    monkeypatch.setattr(readers, "TextExample", lambda *args: found.append(args[0]) or TextExample(*args))
    monkeypatch.setattr("core.data.dataset.WINDOW", 16)
    return found


def recipe(folder, **model):
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return recipe_from(
        {
            "app": "lm",
            "output": str(folder / "run"),
            "model": {"path": "embedded", **model},
            "data": {
                "train": [{"reader": "jsonl", "path": str(folder / "rows.jsonl")}],
                "max_length": 32,
                "streaming": True,
            },
            "method": "lm.pretrain",
            "train": {"max_steps": 2, "batch": {"size": 2}},
            "eval": {"every": 0, "retention": False},
        }
    )


def test_a_calibration_reads_as_many_texts_of_a_stream_as_it_needs(tmp_path, read):
    wanted = recipe(tmp_path, edits=[{"kind": "prune", "method": "wanda", "rows": 4, "length": 64}])
    train(wanted, RunFolder.create(wanted))
    assert 0 < len(read) < 100


def test_an_edit_on_the_first_few_texts_reads_no_further(tmp_path, read):
    wanted = recipe(tmp_path, edits=[{"kind": "skip_ffn", "target_ratio": 0.1, "warmup": 1}])
    train(wanted, RunFolder.create(wanted))
    assert 0 < len(read) < 100


def test_a_plan_reads_the_window_that_it_measures(tmp_path, read):
    assert plan(recipe(tmp_path))["stages"][0]["rows"] == len(read) == 16


def test_a_tokenizer_is_fitted_text_by_text(tmp_path, read, monkeypatch):
    def fitted(texts, size):
        for number, text in enumerate(texts):
            assert text == ROWS[number] and len(read) == number + 1
        assert number + 1 == len(ROWS)
        return train_bpe(texts, size)

    monkeypatch.setattr("core.models.tokenizer.train_bpe", fitted)
    found = plan(recipe(tmp_path, path=None, preset="tiny", tokenizer="bpe:300"))
    assert found["vocabulary"] == 300


def test_the_text_is_that_of_all_stages_each_time():
    texts = _Texts([([TextExample("a"), TextExample("b")], []), ([TextExample("c")], [TextExample("held out")])])
    assert list(texts) == list(texts) == ["a", "b", "c"]
    tokenizer = train_bpe(texts, 300)
    assert tokenizer.get_vocab() == train_bpe(["a", "b", "c"], 300).get_vocab()
    assert all(one.equal(two) for one, two in zip(token_batches(tokenizer, texts), token_batches(tokenizer, "abc")))
