"""The RTL app keeps the shared contract; a verdict on repairs comes from the real harness."""

from __future__ import annotations

import pytest

from apps.rtl import RtlEvaluator, RtlPipeline
from benchmarks.cheats import CHEATS, HONEST, problem
from core.errors import AppInputError, ConfigError, DataError, GraftError
from core.execution.tools import has
from core.inference.engines.script import ScriptEngine
from tests.apps.contract import PipelineContract

WRONG = CHEATS["is constant"]
RIGHT = HONEST["the obvious way"]
HEADER = "module TopModule (input clk, input d, output reg q);"
needs_iverilog = pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")


@needs_iverilog
class TestRtl(PipelineContract):
    app = "rtl"
    inputs = ("An inverter.", "A 4-bit counter with a synchronous reset that wraps at nine.", "A mux of two bits")
    fields = {"header": HEADER}
    row = {"spec": "A D flip-flop.", "header": HEADER}
    bad = (
        ("", {}, AppInputError, "spec"),
        ("An inverter.", {"header": "input clk;"}, AppInputError, "module"),
        ("An inverter.", {"headr": "x"}, AppInputError, "header"),
        ("x", {"testbench": "module bench; endmodule"}, AppInputError, "no module 'tb'"),
        ("x", {"reference": "module a;" + " " * 70000 + "endmodule"}, AppInputError, "limit"),
        ({"sepc": "x"}, {}, GraftError, "spec"),
        ("many words " * 800, {}, AppInputError, "too long"),
    )
    golden = (
        [RIGHT, [WRONG, RIGHT], ""],
        [{"spec": p.spec, "reference": p.reference, "reference_top": "RefModule", "testbench": p.testbench}
         for p in [problem()] * 3],
        {"pass@1": 50.0, "compiles": 75.0, "empty": 25.0},
    )  # fmt: skip


@needs_iverilog
def test_solve_repairs_what_the_verdict_shows():
    seen = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return RIGHT if "This attempt is wrong" in prompt else WRONG

    pipeline = RtlPipeline(ScriptEngine(answer), None, RtlPipeline._config({"sim_timeout_s": 2.0}))
    out = pipeline.solve(problem())
    assert out.verdict.passed and len(out.trace) == 2 and out.code == RIGHT.strip() + "\n"
    assert "output q first at time" in seen[1] and "q_ref" in seen[1] and "samples differ" in seen[1]
    assert out.isolation in ("strict", "medium") and out.to_dict()["verdict"]["letter"] == "."
    never = RtlPipeline(ScriptEngine(lambda prompt: WRONG), None, RtlPipeline._config({"sim_timeout_s": 2.0}))
    lost = never.solve(problem(), rounds=1)
    assert not lost.verdict.passed and lost.waveform.startswith(b"$date") and len(lost.trace) == 2


@needs_iverilog
def test_several_samples_have_pass_at_k_and_too_few_are_skipped():
    report = RtlEvaluator(k=(1, 2, 5), official="v2").score([[WRONG, RIGHT], [RIGHT, RIGHT]], [problem()] * 2)
    assert report.value("pass@1") == 75 and report.value("pass@2") == 100
    assert report.metrics["pass@5"].skipped == "needs 5 samples a problem, one has 2"
    assert report.value("official_pass@1") == 75 and report.signature["letters"] == {"R": 1, ".": 3}
    assert report.rows[0]["letters"] == "R." and "iverilog" in report.signature["tools"]


@needs_iverilog
def test_without_k_every_usual_one_is_reported_that_there_are_samples_for():
    report = RtlEvaluator().score([[WRONG, RIGHT, WRONG, WRONG, WRONG]], [problem()])
    assert report.metrics["pass@1"].value == pytest.approx(20) and report.metrics["pass@5"].value == 100
    assert "pass@10" not in report.metrics
    asked = RtlEvaluator(["official_pass@1"]).score([RIGHT], [problem()])
    assert asked.metrics["official_pass@1"].value == 100 and asked.signature["official_rules"] == "v2"


def test_an_invalid_problem_counts_for_nobody():
    import dataclasses

    broken = dataclasses.replace(problem(), reference="module RefModule; broken endmodule", id="broken")
    report = RtlEvaluator().score([RIGHT, RIGHT], [problem(), broken])
    assert report.value("pass@1") == 100 and report.metrics["pass@1"].n == 1
    assert report.failures[0]["id"] == "broken"


def test_without_a_simulator_metrics_are_skipped_with_the_package_named(monkeypatch):
    monkeypatch.setattr("core.execution.tools.shutil.which", lambda *a, **k: None)
    report = RtlEvaluator().score([RIGHT], [problem()])
    assert "Debian package: iverilog" in report.metrics["pass@1"].skipped and report.value("empty") == 0


def test_bad_settings_are_errors():
    with pytest.raises(ConfigError, match="unknown metric"):
        RtlEvaluator(["pass@10"])
    with pytest.raises(ConfigError):
        RtlEvaluator(k=(0,))
    with pytest.raises(DataError, match="no samples"):
        RtlEvaluator().score([[]], [problem()])


@needs_iverilog
def test_several_samples_of_a_task_are_scored_as_pass_at_k():
    seen = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return RIGHT if len(seen) <= 3 else WRONG

    pipeline = RtlPipeline(ScriptEngine(answer), None, RtlPipeline._config({}))
    problems = [problem(), problem()]
    drawn = pipeline.predict(problems, samples=3, temperature=0.85)
    assert [len(texts) for texts in drawn] == [3, 3] and sum(text == RIGHT for texts in drawn for text in texts) == 3
    report = RtlEvaluator(k=(1, 3)).score(drawn, problems)
    assert report.value("pass@1") == pytest.approx(50) and report.value("pass@3") == 100
    assert report.rows[0]["texts"] == drawn[0]
    with pytest.raises(ConfigError, match="3 samples of each example at temperature 0"):
        pipeline.predict(problems, samples=3)
