"""The embeddings page's handlers, called directly."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("gradio")
from apps.embeddings import EmbeddingPipeline  # noqa: E402
from demos.embeddings import Page, build, describe, scatter  # noqa: E402


@pytest.fixture(scope="module")
def page():
    return Page(EmbeddingPipeline.from_pretrained("any", engine="tiny"))


def test_compare(page):
    problem, shown = page.compare("one <b>text</b>", "another text")
    assert not problem and "cosine" in shown and "&lt;" in shown and "<b>text" not in shown
    assert "two texts are needed" in page.compare("", "x")[0]


def test_one_pooled_token_has_a_cosine_and_no_shares():
    from apps.embeddings.model import build_model
    from core.config.schema import ModelConfig
    from core.models.tokenizer import train_bpe

    tokenizer = train_bpe(["one text", "another"], 270)
    spec = ModelConfig(preset="tiny", edits=[{"kind": "embedding", "pooling": "last"}])
    last = EmbeddingPipeline.from_model(build_model(spec, tokenizer, device="cpu"), tokenizer)
    problem, shown = Page(last).compare("one text", "another")
    assert "no shares of tokens" in problem and "cosine" in shown
    assert "pooling lasttoken" in describe(last)


def test_search_beside_bm25(page, tmp_path):
    problem, mine, lexical, happened = page.search("How do I block a lost card?", 3)
    assert not problem and mine.count("<div>") == 3 and "<mark>lost</mark>" in lexical
    assert "Instruct: " in happened and "<mark>How do I block a lost card?</mark>" in happened
    (tmp_path / "own.txt").write_text("alpha beta\ngamma\n")
    problem, loaded = page.load(str(tmp_path / "own.txt"))
    assert not problem and ">2<" in loaded
    assert "<mark>gamma</mark>" in page.search("gamma", 1)[2]
    assert "no document shares" in page.search("zebra", 1)[2]
    (tmp_path / "empty.txt").write_text("\n")
    assert "0 lines" in page.load(str(tmp_path / "empty.txt"))[0]
    assert "nothing to search" in page.search(" ")[0]


def test_map_and_scores(page, tmp_path):
    problem, picture = page.map(None)
    assert not problem and picture.count("<circle") == 144 and "garden" in picture
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(4)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert page.map(str(tmp_path / "m.jsonl"))[1].count("<circle") == 4
    (tmp_path / "bad.jsonl").write_text('{"txt": 1}\n')
    assert "unknown field" in page.map(str(tmp_path / "bad.jsonl"))[0]
    problem, summary, table, plot, worst, bundled = page.evaluate(None)
    assert not problem and table[0][0] == "ndcg@10" and table[0][2:] == ["", 48] and "48" in summary
    assert "<svg" in plot and worst and bundled.endswith("embeddings-report.zip")
    assert "unknown field" in page.evaluate(str(tmp_path / "bad.jsonl"))[0]


def test_a_second_model_is_scored_beside(page, tmp_path):
    page.pipeline.save_pretrained(tmp_path / "same")
    problem, _, table, *_ = page.evaluate(None, str(tmp_path / "same"))
    assert not problem and float(table[0][2]) == pytest.approx(float(table[0][1].split("%")[0]), abs=0.02)
    assert "error" in page.evaluate(None, "nowhere")[0]


def test_the_page_builds(page):
    assert build(page.pipeline).title == "graft embeddings"


def test_a_small_map_says_what_its_points_are(page):
    _, drawn = page.map(None)
    assert "<text" not in drawn, "many texts would cover each other"
    drawn = scatter(np.array([[0.0, 0.0], [1.0, 1.0]]), ["a", "b"], ["<first>", "last" * 20], "two")
    assert ">&lt;first&gt;</text>" in drawn and f">{('last' * 20)[:39]}…</text>" in drawn


def test_errors_name_an_upload_as_its_owner_does(page):
    from gradio.utils import get_upload_folder

    from core.errors import DataError
    from demos import look

    shown = look.banner(DataError("no text", file=f"{get_upload_folder()}/{'0f' * 32}/mine.jsonl", line=3))
    assert "mine.jsonl:3" in shown and get_upload_folder() not in shown
