"""Bad input, one by one: each ends in a clear status within its limit, never in a hang or a traceback."""

from __future__ import annotations

import dataclasses
import shutil
import time

import pytest

from apps.rtl import RtlEvaluator, RtlHarness, RtlPipeline
from apps.rtl.engines import Limits
from apps.rtl.example import example_from
from benchmarks.cheats import HONEST, problem
from core.errors import AppInputError, DataError
from core.execution import ToolMissing
from core.execution.tools import has

pytestmark = pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")
RIGHT = HONEST["the obvious way"]
DOUBLING = "`define m0 ;\n" + "".join(f"`define m{n} `m{n - 1} `m{n - 1}\n" for n in range(1, 40))
SECOND = 1.0


@pytest.fixture(scope="module")
def harness():
    return RtlHarness(engine="iverilog", limits=Limits(compile_s=10, simulate_s=SECOND))


@pytest.fixture
def without(monkeypatch):
    """Hides programs from the registry."""
    real = shutil.which

    def hide(*names):
        monkeypatch.setattr("core.execution.tools.shutil.which",
                            lambda name, *a, **k: None if name in names else real(name, *a, **k))  # fmt: skip

    return hide


@pytest.mark.parametrize("name", ["iverilog", "yosys", "verilator"])
def test_a_missing_tool_is_named_with_its_debian_package(without, name):
    without(name)
    with pytest.raises(ToolMissing, match=rf"{name} not found \(Debian package: {name}\)") as caught:
        if name == "yosys":
            from apps.rtl.ppa import cost

            cost(RIGHT)
        else:
            RtlHarness(engine=name)
    assert f"apt-get install {name}" in str(caught.value)


def test_an_evaluation_without_a_simulator_says_so_and_ends(without):
    without("iverilog", "verilator")
    report = RtlEvaluator().score([RIGHT], [problem()])
    assert "Debian package: iverilog" in report.metrics["pass@1"].skipped


@pytest.mark.parametrize(
    "answer, letter, words",
    [
        (RIGHT.replace("TopModule", "Counter"), "X", "no module 'TopModule'; the answer has Counter"),
        (RIGHT + RIGHT, "X", "defined twice"),
        ("", "S", "holds no module"),
        ("   \n\t", "S", "holds no module"),
        ("I cannot help with that.", "S", "holds no module"),
        (RIGHT.replace("reg q", "reg ｑ"), "S", "not ASCII"),
        (RIGHT.replace("reg q", "reg q\0"), "S", "line 1"),
        (RIGHT + "// " + "x" * 70_000 + "\nmodule more; endmodule\n", "S", "the limit is 65536"),
        ("module TopModule (", "S", ""),
        ('`include "/etc/passwd"\n' + RIGHT, "X", "`include"),
        (RIGHT.replace("endmodule", "// \ud800\nendmodule"), "S", "half a character"),
        (RIGHT.replace(";\n", ";  // ｑ\nwire ｑ;\n", 1), "S", "line 2"),
        (DOUBLING + RIGHT.replace("endmodule", "`m39 endmodule"), "X", "macros expand into more than"),
        (RIGHT.replace("endmodule", f"wire n = {'(' * 15_000}q{')' * 15_000};\nendmodule"), "C", ""),
    ],
)
def test_a_bad_answer_is_a_letter(harness, answer, letter, words):
    verdict = harness.verify(problem(), answer)
    assert verdict.letter == letter and words in verdict.meaning and verdict.score == 0


@pytest.mark.parametrize(
    "prose", ["I cannot help.", "No; it is too hard.", "Sorry: see a.b", "```verilog\n```", "1. `x`"]
)
def test_prose_is_no_module_though_a_header_could_stand_before_it(harness, prose):
    task = dataclasses.replace(problem(), header=RIGHT[: RIGHT.index(";") + 1])
    verdict = harness.verify(task, prose)
    assert (verdict.letter, verdict.stage) == ("S", "extract") and "holds no module" in verdict.meaning
    body = RIGHT[RIGHT.index(";") + 1 :]
    assert harness.verify(task, body).passed and harness.verify(task, body.replace("endmodule", "")).passed


def test_a_module_without_its_end_says_where(harness):
    verdict = harness.verify(problem(), RIGHT.replace("endmodule", ""))
    assert verdict.letter == "S" and any("endmodule" in mark.message for mark in verdict.diagnostics)


@pytest.mark.parametrize(
    "loop, words",
    [
        ("module restless; reg x; initial forever #0 x = 1; endmodule", "timeout"),
        ('module loud; initial forever $display("%0s", {1000{"x"}}); endmodule', "output_limit"),
    ],
)
def test_a_testbench_that_never_ends_or_prints_without_end_is_an_invalid_problem(harness, loop, words):
    name = loop.split()[1].rstrip(";")
    task = problem()
    text = task.testbench.replace("endmodule", f"  {name} more ();\nendmodule", 1) + f"\n{loop}\n"
    start = time.perf_counter()
    verdict = harness.verify(dataclasses.replace(task, testbench=text), RIGHT)
    assert verdict.letter == "I" and words in verdict.detail
    assert time.perf_counter() - start < 15


def test_a_candidate_that_never_ends_is_a_timeout_of_its_own(harness):
    endless = "module TopModule (input clk, input d, output reg q);\n  initial forever #0 q = d;\nendmodule\n"
    start = time.perf_counter()
    verdict = harness.verify(problem(), endless)
    assert verdict.letter == "T" and time.perf_counter() - start < 15
    assert harness.verify(problem(), endless.replace("initial forever #0", "always")).letter == "C"


def test_output_without_end_is_cut_by_the_official_rules_too():
    loud = 'module TopModule (input clk, input d, output reg q);\n  initial forever $display("Pass");\nendmodule\n'
    stock = RtlHarness(mode="v2", limits=Limits(compile_s=10, simulate_s=SECOND))
    verdict = stock.verify(problem(), loud)
    assert not verdict.passed and len(verdict.log) < 2_000_000


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"header": "input clk, output q"}, "no 'module'"),
        ({"header": "module a;", "top": "b"}, "another module"),
        ({"testbench": "module bench; endmodule"}, "no module 'tb'"),
        ({"reference": "assign a = b;"}, "no module"),
        ({"header": 5}, "expected a string"),
        ({"testbench": "x" * 70_000}, "the limit is"),
    ],
)
def test_a_bad_task_is_refused_before_a_model_runs(fields, words):
    pipe = RtlPipeline.from_pretrained("embedded")
    with pytest.raises(AppInputError, match=words):
        pipe.to_example("A thing.", **fields)
    with pytest.raises(AppInputError):
        pipe.to_example("  ")


def test_rows_of_a_file_say_what_is_wrong_with_them():
    with pytest.raises(DataError, match="specfication"):
        example_from({"specfication": "x"}, file="a.jsonl", line=3)
    with pytest.raises(DataError, match="a string"):
        example_from({"spec": "x", "reference": 3}, file="a.jsonl", line=3)
    with pytest.raises(DataError, match="whole characters"):
        example_from({"spec": "x \ud800"}, file="a.jsonl", line=3)
