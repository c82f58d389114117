"""Reports as files and as text, and what every evaluator refuses."""

from __future__ import annotations

import pytest

from core.errors import ConfigError, DataError, GraftError
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report


def report(value=12.5, **more):
    metrics = {
        "bleu": Metric(value, 3, (10.0, 15.0)),
        "comet": Metric(None, 0, skipped="no checkpoint given"),
        "ter": Metric(70.0, 3, unit="%", higher_is_better=False),
    }
    rows = [{"id": str(i), "prediction": "ü" * i, "chrf": float(i)} for i in range(3)]
    return Report("translation", metrics, {"bleu": "version:2.6"}, rows, [rows[0]], "bleu", **more)


def test_a_report_loads_as_it_was_saved(tmp_path):
    report().save(tmp_path / "eval")
    assert Report.load(tmp_path / "eval") == report()
    assert [p.name for p in sorted((tmp_path / "eval").iterdir())] == ["predictions.jsonl", "report.json"]


def test_the_value_is_the_primary_one_and_none_when_skipped():
    assert report().value() == 12.5
    assert report().value("comet") is None
    assert report().value("nothing") is None


def test_a_skipped_metric_says_why_in_every_table():
    assert "skipped: no checkpoint given" in report().table()
    text = report(20.0).table(report())
    assert "skipped: no checkpoint given" in text
    line = next(line for line in text.splitlines() if line.startswith("bleu"))
    assert line.index("12.50 [10.00, 15.00]") < line.index("20.00 [10.00, 15.00]")
    assert line.endswith("3")


def test_torn_and_missing_files_are_named(tmp_path):
    with pytest.raises(GraftError, match="not found"):
        Report.load(tmp_path)
    report().save(tmp_path)
    whole = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(GraftError, match="report.json"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text('{"metrics": {"bleu": {"worth": 1}}}')
    with pytest.raises(DataError, match="not a report"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(DataError, match="not a report"):
        Report.load(tmp_path)


class Exact(BaseEvaluator):
    name, primary, known = "exact", "match", ("match", "length")

    def score(self, predictions, examples):
        self.check(predictions, examples)
        hits = sum(p == e for p, e in zip(predictions, examples))
        return Report(self.name, {"match": Metric(100 * hits / len(examples), len(examples))}, primary="match")


def test_evaluators_refuse_what_cannot_be_scored():
    assert Exact().score(["a", "b"], ["a", "c"]).value() == 50
    with pytest.raises(DataError, match="example 1 has no partner"):
        Exact().score(["a"], ["a", "b"])
    with pytest.raises(DataError, match="prediction 2 has no partner"):
        Exact().score(["a", "b", "c"], ["a", "b"])
    with pytest.raises(DataError, match="empty"):
        Exact().score([], [])


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match="match"):
        Exact(["mach"])
    assert Exact(["length"]).metrics == ["length"]
    assert Exact().metrics == ["match", "length"]
