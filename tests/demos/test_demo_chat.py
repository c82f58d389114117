"""The chat demo's handlers, called as the page calls them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio")

import gradio as gr

from apps.chat import ChatPipeline
from core.inference.engines.script import ScriptEngine
from core.models.tokenizer import train_bpe
from demos import chat


@pytest.fixture(scope="module")
def page():
    """A model that answers with the last question in capitals."""
    engine = ScriptEngine(lambda prompt: prompt.rpartition("User:")[2].partition("\n")[0].strip().upper())
    return chat.Page(ChatPipeline(engine, train_bpe(["text"], 300), ChatPipeline._config({"template": "plain"})))


def test_a_conversation_keeps_its_turns(page):
    (first, asked, *_), *_, (last, turns, banner, happened) = page.answer("hello", [], "", 0.0, 16)
    assert first == "" and asked == [{"role": "user", "content": "hello"}] and last == gr.skip() and banner == ""
    assert turns[-1] == {"role": "assistant", "content": "HELLO"}
    # the page gives a turn's text back in parts
    turns[0]["content"] = [{"type": "text", "text": "hello"}]
    *_, (_, turns, _, happened) = page.answer("again <b>", turns, "Be brief.", 0.0, 16)
    assert [t["role"] for t in turns] == ["user", "assistant"] * 2 and turns[-1]["content"] == "AGAIN <B>"
    assert "Be brief." in happened and "again &lt;b&gt;" in happened and "HELLO" in happened


def test_a_question_that_was_stopped_before_its_first_word_gives_way_to_the_next(page):
    (_, stopped, *_), *_ = page.answer("one", [], "", 0.0, 16)
    *_, (_, turns, banner, happened) = page.answer("two", stopped, "", 0.0, 16)
    assert [turn["content"] for turn in turns] == ["two", "TWO"] and banner == "" and "one" not in happened


def test_an_empty_question_is_said_and_nothing_is_lost(page):
    ((text, turns, banner, _),) = page.answer(" ", [{"role": "user", "content": "a"}], "", 0.0, 16)
    assert "no question" in banner and text == " " and turns == [{"role": "user", "content": "a"}]


def test_answers_that_a_file_brings_are_scored_and_others_are_made(page, tmp_path):
    file = tmp_path / "a.json"
    rows = [{"instruction": "say a", "output": "a"}, {"instruction": "say b", "output": "SAY B"}]
    file.write_text(json.dumps([{**row, "prediction": "a"} for row in rows]))
    banner, summary, metrics, _, worst, archive = page.evaluate(str(file))
    assert banner == "" and archive and {row[0] for row in metrics} >= {"exact ↑", "repetition ↓"}
    assert next(row for row in metrics if row[0] == "exact ↑")[1] == "50.00"
    file.write_text(json.dumps(rows))
    assert next(row for row in page.evaluate(str(file))[2] if row[0] == "exact ↑")[1] == "50.00"
    file.write_text(json.dumps([{**rows[0], "prediction": "a"}, rows[1]]))
    assert "only some rows have a prediction" in page.evaluate(str(file))[0]
    assert "nothing to score yet" in page.evaluate(None)[0]


def test_shipped_questions(page):
    banner, _, metrics, *_ = page.evaluate_sample()
    assert banner == "" and metrics


def test_it_builds(page):
    blocks = chat.build(page.pipeline)
    assert isinstance(blocks, gr.Blocks) and "never taught" not in str(blocks.config)


def test_a_base_that_cannot_answer_is_introduced_as_one(page, monkeypatch):
    monkeypatch.setattr(page.pipeline, "source", {"path": "/models/embedded"})
    assert "never taught" in str(chat.build(page.pipeline).config)
