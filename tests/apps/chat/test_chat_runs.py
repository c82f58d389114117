"""Runs on a user's own files: what is wrong with them is told before a model is loaded, what is left out is counted."""

from __future__ import annotations

import json

import pytest

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import AppInputError, ConfigError, DataError, TemplateError
from core.training import build
from core.training.run import train


def row(question, answer=None):
    turns = [{"role": "user", "content": question}]
    return {"messages": turns if answer is None else [*turns, {"role": "assistant", "content": answer}]}


GOOD = [row(f"What is {n} plus one?", f"It is {n + 1}.") for n in range(8)]


def recipe(tmp_path, rows, held_out=(), options=None, **data):
    for name, given in (("train", rows), ("held", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in given))
    return recipe_from(
        {
            "app": "chat",
            "output": str(tmp_path / "run"),
            "model": {"preset": "tiny", "tokenizer": "bpe:300"},
            "data": {
                "train": [{"reader": "auto", "path": str(tmp_path / "train.jsonl")}],
                "eval": [{"reader": "auto", "path": str(tmp_path / "held.jsonl")}] if held_out else [],
                "max_length": 64,
                **data,
            },
            "method": "chat.sft",
            "with": options or {},
            "train": {"max_steps": 2, "batch": {"size": 4}},
            "eval": {"every": 0, "sampling": {"max_new_tokens": 2}},
        }
    )


@pytest.mark.parametrize(
    ("rows", "error", "what"),
    [
        ([row("Hi", "word " * 90)], DataError, "no token of 1 rows carries loss"),
        ([*GOOD, row("And?"), row("So?")], DataError, "2 of 10 conversations have no answer to learn; .* number 9"),
    ],
)
def test_rows_that_cannot_be_learnt_are_told_before_a_model_is_loaded(tmp_path, monkeypatch, rows, error, what):
    monkeypatch.setattr(build, "build_base", lambda *a, **k: pytest.fail("the model was loaded"))
    run = RunFolder.create(recipe(tmp_path, rows, GOOD[:2]))
    with pytest.raises(error, match=what) as caught:
        train(run.recipe(), run)
    assert caught.value.hint


def test_a_template_that_the_tokenizer_has_not_is_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build_base", lambda *a, **k: pytest.fail("the model was loaded"))
    run = RunFolder.create(recipe(tmp_path, GOOD, GOOD[:2], {"template": "model"}))
    with pytest.raises(TemplateError, match="no chat template"):
        train(run.recipe(), run)
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        recipe(tmp_path, GOOD, options={"template": "chatlm"})


def test_what_is_left_out_and_cut_is_said(tmp_path):
    rows = [*GOOD, row("And?"), row("Hi", "word " * 90), row("long " * 90, "Yes.")]
    run = RunFolder.create(recipe(tmp_path, rows, on_bad="skip"))
    train(run.recipe(), run)
    log = (run.path / "log.txt").read_text()
    assert "train.jsonl: messages (rows have 'messages'), the first has 2 turns" in log
    assert "1 of 11 conversations have no answer to learn and are left out" in log
    assert "10% of the rows do not fit and are dropped (row 9)" in log
    assert "tokens of what is given are cut from 1; data.max_length is 64" in log


def test_a_held_out_row_that_fills_the_context_is_named(tmp_path):
    run = RunFolder.create(recipe(tmp_path, GOOD, [*GOOD[:2], row("long " * 2000, "Yes.")]))
    with pytest.raises(AppInputError, match="the model's context is") as caught:
        train(run.recipe(), run)
    assert caught.value.where == "row 3 of data.eval" and "take it out" in caught.value.hint
