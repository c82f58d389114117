"""The page of a run: everything that is there is shown and escaped, everything that is not is said."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from core.config.files import write_json
from core.config.run_folder import RunFolder
from core.evaluation.chart import Series, curves, intervals, number, smooth, thin, ticks
from core.evaluation.examples import score_field
from core.evaluation.history import read_history
from core.evaluation.page import write_report_page
from core.evaluation.report import Metric, Report

EVIL = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "br"}


class Checked(HTMLParser):
    """Refuses unbalanced tags, scripts, event handlers and anything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert tag not in ("script", "link", "img", "iframe")
        for name, _ in attrs:
            assert name not in ("src", "href", "xlink:href") and not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    html = path.read_text(encoding="utf-8")
    page = Checked()
    page.feed(html)
    assert page.open == []
    assert "@import" not in html and "url(" not in html
    return html, " ".join(page.text), page


def evaluated(folder, bleu, predictions):
    rows = [
        {"id": str(i), "input": f"Quelle {i} {EVIL}", "reference": f"target {i}", "prediction": p, "chrf": bleu + i}
        for i, p in enumerate(predictions)
    ]
    metrics = {
        "bleu": Metric(bleu, len(rows), (bleu - 2, bleu + 2)),
        "ter": Metric(100 - bleu, len(rows), higher_is_better=False),
        "comet": Metric(None, 0, skipped="no checkpoint given"),
    }
    Report("translation", metrics, {"bleu": "version:2.6"}, rows, [], "bleu").save(folder)


@pytest.fixture
def run(tmp_path):
    info = {"id": "abc", "app": "translation", "recipe": f"alma {EVIL}", "seed": 7, "status": "done", "created": 1e9}
    write_json(
        tmp_path / "run.json", {**info, "seconds": 3725, "versions": {"torch": "2.13"}, "command": ["graft", EVIL]}
    )
    (tmp_path / "recipe.yaml").write_text("app: translation\n")
    (tmp_path / "resolved.yaml").write_text(f"app: translation\nnote: {EVIL}\n")
    run = RunFolder(tmp_path)
    for step in range(1, 41):
        run.log_metric({"stage": "main", "step": step, "loss": 4 / step + 1, "tokens_per_s": 900, "peak_gib": 0.5})
    run.log_metric({"stage": "main", "step": 40, "eval": {"loss": 1.2, "bleu": 21.0}})
    evaluated(run.eval_dir("before"), 5.0, ["", "target", EVIL])
    evaluated(run.eval_dir("after"), 25.5, ["target 0", EVIL, "target 2"])
    write_json(tmp_path / "eval" / "retention.json", {"before": 2.0, "after": 2.25})
    write_json(run.stage_dir(0, "main") / "stage.json", {"stage": "main", "method": "x", "tokens_seen": 2_500_000})
    return run


def test_the_whole_run_is_told(run):
    html, text, page = read(write_report_page(run))
    assert EVIL in text and "<script" not in html
    for expected in ("25.50", "[23.50, 27.50]", "+20.50", "-20.50", "skipped: no checkpoint given", "+0.250", "1:02:05",
                     "2.5M", "2.13", "Quelle 1", "version:2.6"):  # fmt: skip
        assert expected in text, expected
    assert html.count("<svg") == 2 + 2, "loss, score, and one interval a metric with values"
    assert "svg" in page.tags and 'class="missing"' not in html
    assert 'class="up">+20.50' in html and 'class="up">-20.50' in html, "a lower error rate is an improvement"


def test_an_empty_run_says_what_is_missing(tmp_path):
    _, text, _ = read(write_report_page(RunFolder(tmp_path)))
    for name in ("run.json", "eval/before/report.json", "eval/after/report.json", "metrics.jsonl", "recipe.yaml",
                 "resolved.yaml", "plan.json", "predictions.jsonl", "retention.json"):  # fmt: skip
        assert name in text, name


def test_torn_files_are_said_and_the_rest_is_shown(run):
    (run.eval_dir("before") / "report.json").write_text('{"metrics":')
    (run.path / "eval" / "retention.json").write_text("[1]")
    with open(run.metrics, "a") as handle:
        handle.write('{"step": 41, "loss"')
    _, text, _ = read(write_report_page(run))
    assert "eval/before/report.json" in text and "25.50" in text


@pytest.mark.parametrize("info", [[], {"status": None, "created": "yesterday", "versions": [1], "command": "graft"}])
def test_a_strange_run_json_breaks_nothing(run, info):
    write_json(run.path / "run.json", info)
    read(write_report_page(run))


def test_a_failed_run_shows_its_error(run):
    run.set_status("failed", error=f"DataError: {EVIL}")
    html, text, _ = read(write_report_page(run))
    assert f"DataError: {EVIL}" in text and 'class="badge failed"' in html


def test_rows_of_any_app_can_be_shown(run):
    rows = [{"prediction": {"logprob": -3.0}, "text": "x"}, {"prediction": None}]
    Report("lm", {"loss": Metric(2.0, 2)}, {}, rows, [], "loss").save(run.eval_dir("after"))
    read(write_report_page(run))
    assert score_field(rows) is None
    assert score_field([{"id": 1, "ok": True, "chrf": 2.0}, {"id": 2, "ok": True, "chrf": 3}]) == "chrf"


def test_worst_comes_first_also_where_lower_is_better(run):
    rows = [{"text": f"text {i}", "bits_per_byte": float(i)} for i in range(20)]
    metrics = {"bits_per_byte": Metric(9.5, 20, higher_is_better=False)}
    Report("lm", metrics, {}, rows, [], "bits_per_byte").save(run.eval_dir("after"))
    _, text, _ = read(write_report_page(run))
    assert text.index("text 19") < text.index("text 18") and "text 3" not in text


def test_history_follows_stages_and_takes_the_later_of_two_lines():
    rows = [{"stage": "a", "step": s, "loss": 5.0} for s in (1, 2, 3)]
    rows += [{"stage": "a", "step": 3, "loss": 4.0}, {"stage": "b", "step": 1, "loss": float("nan")}]
    rows += [{"stage": "b", "step": 2, "loss": 2.0, "eval": {"loss": 2.5, "bleu": None, "runtime": 3.0}}, {"loss": 1.0}]
    history = read_history(rows)
    assert history.train == [(1, 5.0), (2, 5.0), (3, 4.0), (5, 2.0)]
    assert history.held_out == [(5, 2.5)]
    assert history.stages == [(1, "a"), (4, "b")]
    assert history.not_finite == 1 and history.scores == {}


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.31) == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert ticks(3, 3) == [3]
    assert [number(v) for v in (12345.6, 3.0, 0.123456, 0.00001234)] == ["12,346", "3", "0.1235", "1.2e-05"]


def test_smoothing_neither_lags_nor_moves_a_line():
    flat = [(x, 2.0) for x in range(50)]
    assert [y for _, y in smooth(flat)] == pytest.approx([2.0] * 50)
    line = smooth([(x, float(x)) for x in range(101)])
    assert line[50][1] == pytest.approx(50, abs=0.01)
    assert len(thin([(x, 1.0) for x in range(12_345)])) <= 500


def test_charts_of_hardly_any_points_still_draw():
    assert curves([]) == "" and intervals(None, None) == ""
    for points in ([(1, 2.0)], [(1, 2.0), (2, 2.0)], [(0, -1.0), (5, 0.0)]):
        svg = curves([Series("loss", points), Series("held-out", points, "dots")])
        assert "nan" not in svg and "inf" not in svg
    assert "nan" not in intervals((1.0, None), (1.0, (1.0, 1.0)))


def test_a_long_run_makes_a_small_page(run):
    with open(run.metrics, "a") as handle:
        for step in range(41, 60_000):
            handle.write(json.dumps({"stage": "main", "step": step, "loss": 1.0 + step % 7}) + "\n")
    assert write_report_page(run).stat().st_size < 120_000
