"""The lm demo's handlers, called as the page calls them."""

from __future__ import annotations

import json
import math
import zipfile

import pytest

pytest.importorskip("gradio")

from apps.lm import LmPipeline
from demos import lm


@pytest.fixture(scope="module")
def page():
    return lm.Page(LmPipeline.from_pretrained("any", engine="tiny", max_new_tokens=8))


def test_a_text_goes_on_and_the_steps_end_in_the_whole(page):
    steps = list(page.go_on("Once", 0.0, 6, 1))
    assert steps[-1][1].startswith("Once") and "Prompt as sent" in steps[-1][2]
    assert steps[-1][1] == "Once" + page.pipeline("Once", max_new_tokens=6, seed=1).text
    (only,) = page.go_on("", 0.0, 6, 1)
    assert "nothing to continue" in only[0]


def test_every_token_is_coloured_by_its_bits(page):
    pieces = page.pipeline.surprise("häuser <b>")
    assert "".join(piece for piece, _ in pieces) == "häuser <b>"
    (found,) = page.pipeline.predict(["häuser <b>"])
    assert sum(bits for _, bits in pieces) == pytest.approx(-found["logprob"] / math.log(2), rel=1e-4)
    banner, facts, shown = page.surprise("häuser <b>")
    assert banner == "" and "&lt;" in shown and "<b>" not in shown and "bits a byte" in facts
    assert "only the first" in page.surprise("word " * 400)[0]
    assert "no text" in page.surprise(" ")[0]


def test_documents_are_measured(page, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one paragraph\n\nanother <one>", encoding="utf-8")
    banner, summary, table, plot, worst, archive = page.measure(str(file))
    assert banner == "" and len(worst) == 2 and plot.count('class="bar"') == 20
    assert {row[0] for row in table} == {"bits_per_byte ↓", "perplexity ↓", "byte_entropy ↓"}
    with zipfile.ZipFile(archive) as bundle:
        assert json.loads(bundle.read("report.json"))["primary"] == "bits_per_byte"
    rows = page.measure_sample()[2]
    assert {"bits_per_byte/de ↓", "bits_per_byte/en ↓"} <= {row[0] for row in rows}


def test_bad_uploads_say_what(page, tmp_path):
    assert "nothing to measure" in page.measure(None)[0]
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "x"}\n', encoding="utf-8")
    assert "no text" in page.measure(str(file))[0]


def test_it_builds(page):
    import gradio

    assert isinstance(lm.build(page.pipeline), gradio.Blocks)
