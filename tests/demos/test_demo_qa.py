"""The question-answering page's handlers, called directly."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio")
from apps.qa import QaPipeline  # noqa: E402
from demos.qa import Page, build, marked  # noqa: E402


@pytest.fixture(scope="module")
def page():
    return Page(QaPipeline.from_pretrained("any", engine="tiny"))


def test_ask(page):
    problem, answer, found, happened = page.ask("Is water wet?", "Water is wet.\nFire <b>burns</b>.", 1)
    assert (">yes<" in answer or ">no<" in answer) and "error" not in problem
    assert "<mark>Water</mark>" in found and "Context: Water is wet." in happened
    _, _, _, closed = page.ask("Is water wet?", "Water is wet.", 0, True)
    assert "Context:" not in closed
    assert "there is no question" in page.ask(" ", "")[0]


def test_scores(page, tmp_path):
    problem, summary, table, plot, worst, bundled = page.evaluate(None)
    assert not problem and {row[0] for row in table} >= {"accuracy", "majority", "mrr"} and "<svg" in plot
    assert bundled.endswith("qa-report.zip") and "questions" in summary and len(worst) >= 2
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Is it?", "answers": ["yes"]}) + "\n")
    assert {row[0]: row[2] for row in page.evaluate(str(tmp_path / "q.jsonl"))[2]}["accuracy"] == 1
    (tmp_path / "q.jsonl").write_text('{"question": ""}\n')
    assert "q.jsonl" in page.evaluate(str(tmp_path / "q.jsonl"))[0]


def test_what_holds_the_answer_is_named_and_sentences_are_kept(page):
    shown = marked("Is it the heart?", ("The heart pumps. It rests.", "Bile <b>"), [0])
    assert shown.count("holds the answer") == 1 and "<mark>heart</mark>" in shown and "<b>" not in shown
    happened = page.ask("Does the heart rest?", "The heart pumps. The sun shines.", 0, False, 1, 1)[3]
    assert "Context: The heart pumps." in happened and "sun" not in happened
    assert not page.has_adapter and page.as_tuned(False).__enter__() is None


def test_the_page_builds_and_says_when_the_model_was_never_taught(page, monkeypatch):
    blocks = build(page.pipeline)
    assert blocks.title == "graft qa" and "never taught" not in str(blocks.config)
    monkeypatch.setattr(page.pipeline, "source", {"path": "/models/embedded"})
    assert "graft train qa/pubmedqa" in str(build(page.pipeline).config)
