"""The question-answering page's handlers, called directly."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio")
from apps.qa import QaPipeline  # noqa: E402
from demos.qa import Page, build  # noqa: E402


@pytest.fixture(scope="module")
def page():
    return Page(QaPipeline.from_pretrained("any", engine="tiny"))


def test_ask(page):
    problem, answer, found, happened = page.ask("Is water wet?", "Water is wet.\nFire <b>burns</b>.", 1)
    assert answer.startswith(("yes or no: yes", "yes or no: no")) and "error" not in problem
    assert "<mark>Water</mark>" in found and "Context: Water is wet." in happened
    _, _, _, closed = page.ask("Is water wet?", "Water is wet.", 0, True)
    assert "Context:" not in closed
    assert "there is no question" in page.ask(" ", "")[0]


def test_scores(page, tmp_path):
    problem, table = page.evaluate(None)
    assert not problem and {row[0] for row in table} >= {"accuracy", "majority", "mrr"}
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Is it?", "answers": ["yes"]}) + "\n")
    assert {row[0]: row[2] for row in page.evaluate(str(tmp_path / "q.jsonl"))[1]}["accuracy"] == "1"
    (tmp_path / "q.jsonl").write_text('{"question": ""}\n')
    assert "q.jsonl" in page.evaluate(str(tmp_path / "q.jsonl"))[0]


def test_the_page_builds(page):
    assert build(page.pipeline).title == "graft qa"
