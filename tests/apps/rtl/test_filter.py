"""Filtering by verification: testbenches decide, votes decide where there is none, and the rest is said."""

from __future__ import annotations

import dataclasses

import pytest

from apps.rtl import RtlHarness
from apps.rtl.equivalence import equivalent
from apps.rtl.example import RtlExample
from apps.rtl.methods.filter import verified
from benchmarks.cheats import problem
from core.execution.tools import has

pytestmark = pytest.mark.skipif(
    not (has("iverilog") and has("yosys")), reason="a tool is absent (Debian packages: iverilog, yosys)"
)

XOR = "module m (input a, input b, output y); assign y = a ^ b; endmodule"
SAME = "module m (input a, input b, output y); assign y = (a & ~b) | (~a & b); endmodule"
OTHER = "module m (input a, input b, output y); assign y = a | b; endmodule"
COUNT = (
    "module c (input clk, input r, output reg [1:0] q); always @(posedge clk) if (r) q <= 0; else q <= q + 1; endmodule"
)


def row(spec, code):
    return RtlExample(spec, "", "m", code, "m")


def test_equivalence_proves_and_refutes():
    assert equivalent(XOR, SAME, "m") == "equal" and equivalent(XOR, OTHER, "m") == "different"
    assert equivalent(COUNT, COUNT.replace("q + 1", "q - 3"), "c") == "equal"
    assert equivalent(COUNT, COUNT.replace("q + 1", "q + 2"), "c") != "equal"
    assert equivalent(XOR, "module m (input a", "m") == "unknown"


def test_rows_are_kept_by_testbench_by_vote_or_not_at_all():
    passing = problem()
    failing = dataclasses.replace(passing, reference="module RefModule (input clk, input d, output reg q);"
                                  " initial q = 0; always @(posedge clk) q <= nowhere; endmodule")  # fmt: skip
    rows = [passing, failing, row("An XOR.", XOR), row("An  XOR.", SAME), row("An XOR.", OTHER), row("Alone.", XOR),
            row("Broken.", "module m (input a; endmodule"), row("None.", None)]  # fmt: skip
    found = verified(rows, RtlHarness())
    assert [one.why for one in found] == [
        "passes", "does not compile", "confirmed", "confirmed", "outvoted", "unconfirmed", "does not compile",
        "no reference",
    ]  # fmt: skip
    assert [one.keep for one in found] == [True, False, True, True, False, False, False, False]
    assert verified([rows[5]], RtlHarness(), unconfirmed=True)[0].keep


def test_a_tie_confirms_nobody():
    rows = [row("A gate.", XOR), row("A gate.", OTHER)]
    assert [one.why for one in verified(rows, RtlHarness())] == ["unconfirmed", "unconfirmed"]
