"""Designs of several files: policy, elaboration and the strict verdict with lines of the right file."""

from __future__ import annotations

import pytest

from apps.rtl.design import DesignEvaluator
from apps.rtl.harness import RtlHarness
from core.errors import DataError
from core.execution.tools import has

needs_icarus = pytest.mark.skipif(not has("iverilog"), reason="iverilog is not installed (Debian package: iverilog)")
LEAF = "// adds one\nmodule leaf(input [3:0] a, output [3:0] y);\n  assign y = a + 4'd1;\nendmodule\n"


@pytest.fixture(scope="module")
def evaluator():
    if not has("iverilog"):
        pytest.skip("iverilog is not installed")
    header = "module top(input [3:0] a, output [3:0] y);"
    reference = "module good(input [3:0] a, output [3:0] y); assign y = a + 2; endmodule"
    testbench = (
        "module tb; reg [3:0] a = 0; wire [3:0] y_ref, y_dut; integer i, e = 0;\n"
        "good good1(a, y_ref); top dut(a, y_dut);\n"
        "initial begin for (i = 0; i < 16; i = i + 1) begin a = i; #1 if (y_ref !== y_dut) e = e + 1; end\n"
        '$display("Mismatches: %1d in %1d samples", e, 16); $finish; end endmodule\n'
    )
    return DesignEvaluator(header=header, reference=reference, testbench=testbench, harness=RtlHarness())


def top(body):
    return f"module top(input [3:0] a, output [3:0] y);\n  {body}\nendmodule\n"


@needs_icarus
def test_leaves_come_first_and_the_whole_is_simulated(evaluator):
    assert evaluator.evaluate({}).passed and evaluator.evaluate({"leaf.v": LEAF, "notes.md": "module"}).passed
    assert evaluator.finished({"leaf.v": LEAF}).failures == ("there is no module 'top' yet",)
    two = top("wire [3:0] m; leaf l1(a, m); leaf l2(m, y);")
    assert evaluator.finished({"leaf.v": LEAF, "top.v": two}).passed
    (told,) = evaluator.evaluate({"leaf.v": LEAF, "top.v": top("leaf l1(a, y);")}).failures
    assert "differs from the reference" in told


@needs_icarus
def test_failures_name_the_file_and_its_line(evaluator):
    broken = "// one\n// two\nmodule other(input a);\n  wire b\nendmodule\n"
    assert any(f.startswith("b.v:") for f in evaluator.evaluate({"a.v": LEAF, "b.v": broken}).failures)
    missing = evaluator.evaluate({"a.v": LEAF, "b.v": "module other(input a);\n  nowhere n(a);\nendmodule\n"}).failures
    assert missing == ("b.v:2: Unknown module type: nowhere",)
    with_top = {"a.v": LEAF, "z.v": "// top\n" + top("assign y = nothing;")}
    assert any(f.startswith("z.v:3:") for f in evaluator.evaluate(with_top).failures)


@needs_icarus
def test_a_file_may_not_do_what_a_candidate_may_not(evaluator):
    (told,) = evaluator.evaluate({"a.v": 'module a;\n  initial $system("id");\nendmodule\n'}).failures
    assert told.startswith("a.v:2:") and "$system" in told
    assert evaluator.evaluate({"a.v": "module ä; endmodule"}).failures[0].startswith("a.v: line 1")
    assert "holds no module" in evaluator.evaluate({"a.v": ""}).failures[0]
    with pytest.raises(DataError, match="no 'module'"):
        DesignEvaluator(header="hello")
