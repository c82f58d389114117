"""Answers that are no modules: assertions that are proved, and reports of HLS bugs; scored without a model."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("pyslang", reason="pyslang is not installed (extra rtl)")

from apps.rtl import RtlEvaluator, load_data
from apps.rtl.assertions.check import check
from apps.rtl.assertions.properties import PROPERTIES, properties
from apps.rtl.assertions.score import score, written
from apps.rtl.taskgen import make, members
from apps.rtl.taskgen.family import Reset
from core.errors import DataError
from core.execution.tools import has

needs_provers = pytest.mark.skipif(
    not (has("iverilog") and has("yosys")), reason="iverilog or yosys is absent (Debian packages of these names)"
)


@needs_provers
@pytest.mark.parametrize("name", PROPERTIES)
def test_what_is_said_of_a_family_is_proved_of_its_members(name):
    told = [p for p in members(name) if properties(name, p)]
    for params in random.Random(name).sample(told, 2):
        reset = Reset(params["reset"])
        texts = properties(name, params)
        report = check(make(name, params).reference, texts, top="TopModule", reset=(reset.name, reset.active))
        assert [(c.status, c.text) for c in report.checked if c.status != "proved"] == [] and len(texts) >= 2, params


@needs_provers
def test_a_reset_is_no_edge_of_its_own_and_memories_are_proved():
    params = {"width": 8, "left": True, "load": True, "reset": "async_low"}
    claim = "assert property (@(posedge clk) disable iff (!rst_n) load |=> q == $past(d));"
    found = check(make("shift_register", params).reference, [claim], top="TopModule", reset=("rst_n", 0))
    assert found.checked[0].status == "proved"
    params = {"depth": 4, "width": 2, "reset": "sync_high"}
    claim = "assert property (@(posedge clk) rst |=> empty && !full);"
    found = check(make("fifo", params).reference, [claim], top="TopModule", reset=("rst", 1))
    assert found.checked[0].status == "proved"


def test_assertions_are_found_in_an_answer():
    text = (
        "Here:\n```\n// assert property (x);\na1: assert property (@(posedge clk)\n  a |-> b);\n"
        "assert property (@(posedge clk) a |-> b);\nassert property (@(posedge clk) broken\n```"
    )
    assert written(text) == [
        "assert property (@(posedge clk) a |-> b);", "assert property (@(posedge clk) broken ```",
    ]  # fmt: skip
    assert written("") == [] == written("module x; endmodule")
    assert len(written("".join(f"assert property (@(posedge clk) q != {i});\n" for i in range(99)))) == 32


@needs_provers
def test_assertions_are_scored_by_proof(tmp_path):
    assert len(load_data(reader="assertgen", size=30, split="unseen_params")) == 30
    examples = load_data(reader="assertgen", size=2, families=["counter", "register"])
    assert all(e.task == "assertions" and e.answer and e.testbench is None for e in examples)
    right = RtlEvaluator(workers=2).score([e.answer for e in examples], examples)
    assert right.metrics["proved"].value == 100 and right.metrics["coverage"].value == 100
    assert right.primary == "proved" and "commercial" in right.signature["prover"]
    wrong = RtlEvaluator(["proved", "falsified", "valid"]).score(
        ["assert property (@(posedge clk) q == 1'b0);\nassert property (@(posedge clk) nothing);", ""], examples
    )
    values = {name: round(m.value, 1) for name, m in wrong.metrics.items()}
    assert values == {"proved": 0.0, "falsified": 33.3, "valid": 33.3}
    assert wrong.rows[0]["checked"][0][0] == "falsified"


def test_designs_in_vhdl_are_listed_as_not_checked(tmp_path):
    (tmp_path / "rtl" / "i2c").mkdir(parents=True)
    (tmp_path / "rtl" / "i2c" / "i2c.vhd").write_text("entity i2c is end;")
    examples = load_data(tmp_path, "asserteval")
    report = RtlEvaluator().score(["assert property (@(posedge clk) a);"], examples)
    assert report.signature["not_checked"] == ["i2c"] and report.metrics["proved"].value is None
    with pytest.raises(DataError, match="no Verilog design"):
        score(examples[0], "")


def test_bug_reports_are_scored_and_tasks_are_not_mixed():
    examples = load_data(reader="hls_planted", split="test")
    answers = [e.answer for e in examples]
    assert [m.value for m in RtlEvaluator().score(answers, examples).metrics.values()] == [100, 100, 100]
    half = RtlEvaluator(["type", "line"]).score([[a, "type: nothing"] for a in answers], examples)
    assert half.metrics["type"].value == 50 and set(half.metrics) == {"type", "line"}
    assert "of types" in half.signature["chance"] and len(half.rows) == 2 * len(examples)
    other = load_data(reader="taskgen", size=1)
    with pytest.raises(DataError, match="several tasks"):
        RtlEvaluator().score(["", ""], [examples[0], other[0]])
