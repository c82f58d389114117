"""Assertions: lowered as the standard means them, and each status reached by a design that deserves it."""

from __future__ import annotations

import random

import pytest

from apps.rtl.assertions.check import check, cone_share
from apps.rtl.assertions.lower import lower
from core.errors import DataError
from core.execution import Policy, Sandbox, Step
from core.execution.tools import has

pytest.importorskip("pyslang", reason="pyslang is not installed (extra rtl)")
needs_tools = pytest.mark.skipif(
    not (has("iverilog") and has("yosys")), reason="a tool is absent (Debian packages: iverilog, yosys)"
)
COUNTER = """module c(input clk, input rst, input en, output reg [3:0] q, output full,
  output reg [3:0] spare);
  assign full = (q == 9);
  initial spare = 0;
  always @(posedge clk) spare <= spare + en;
  always @(posedge clk) if (rst) q <= 0; else if (en) q <= (q == 9) ? 0 : q + 1;
endmodule
"""


def prop(text):
    return f"assert property (@(posedge clk) {text});"


@needs_tools
@pytest.mark.parametrize(
    "text, status",
    [
        ("rst |=> q == 0", "proved"),
        ("disable iff (rst) q <= 9", "proved"),
        ("disable iff (rst) en && q < 9 |=> q == $past(q) + 1", "proved"),
        ("disable iff (rst) !en |=> $stable(q)", "proved"),
        ("disable iff (rst) full && en |-> ##1 q == 0", "proved"),
        ("disable iff (rst) $rose(full) |-> $past(q) == 8", "proved"),
        ("disable iff (rst) en |=> q == $past(q) + 1", "falsified"),
        ("disable iff (rst) full |-> ##[1:2] q == 0", "falsified"),
        ("rst ##[1:3] full |-> en", "vacuous"),
        ("nothere |-> full", "invalid"),
    ],
)
def test_every_status_is_reached(text, status):
    report = check(COUNTER, [prop(text)], top="c", reset=("rst", 1))
    assert report.checked[0].status == status, report.checked[0]


@needs_tools
def test_coverage_counts_the_state_that_proofs_depend_on():
    report = check(COUNTER, [prop("rst |=> q == 0"), prop("en |=> en")], top="c", reset=("rst", 1))
    assert report.coverage == 0.5 and report.counts == {"proved": 1, "falsified": 1} and "commercial" in report.header
    both = check(COUNTER, [prop("rst |=> q == 0"), prop("!en |=> spare == $past(spare)")], top="c", reset=("rst", 1))
    assert both.coverage == 1.0
    assert check("module g(input clk, input a, output y); assign y = a; endmodule", [prop("a |-> y")]).coverage is None


@needs_tools
def test_the_lowering_means_what_the_standard_says():
    """Random traces against a direct evaluation of the sequence semantics."""
    draw = random.Random(0)
    cases = {
        "a |-> b": ([[(0, "a")]], [[(0, "b")]], 0),
        "a |=> b": ([[(0, "a")]], [[(0, "b")]], 1),
        "a ##1 b |-> ##[1:2] c": ([[(0, "a"), (1, "b")]], [[(1, "c")], [(2, "c")]], 0),
        "a ##[0:1] b |=> c": ([[(0, "a"), (0, "b")], [(0, "a"), (1, "b")]], [[(0, "c")]], 1),
        "a ##2 b": ([[]], [[(0, "a"), (2, "b")]], 0),
    }
    for text, (before, after, shift) in cases.items():
        trace = [{n: draw.random() < 0.6 for n in "abc"} for _ in range(60)]
        monitor = lower(prop(text))
        wanted = []
        for now in range(len(trace)):
            last = monitor.depth
            start = now - last
            fails = False
            if start >= 0:
                for left in before:
                    if all(trace[start + o][n] for o, n in left):
                        end = start + max((o for o, _ in left), default=0) + shift
                        fails |= not any(all(trace[end + o][n] for o, n in right) for right in after)
            wanted.append(int(fails))
        lines = "".join(
            f'    {{a, b, c}} = 3\'b{t["a"]:d}{t["b"]:d}{t["c"]:d}; #4 $write("%b", {monitor.fail}); '
            "#1 clk = 1; #5 clk = 0;\n"
            for t in trace
        )
        code = (
            "module t; reg clk = 0, a, b, c;\n"
            + "\n".join(monitor.lines)
            + f"\ninitial begin\n{lines} end\nendmodule\n"
        )
        done = Sandbox.best(Policy()).run(
            [Step(["iverilog", "-g2012", "-o", "x", "t.sv"]), Step(["vvp", "-n", "x"], only_if=0)], {"t.sv": code}
        )
        assert done.last.out.strip() == "".join(map(str, wanted)), (text, done.steps[0].err)
        assert "1" in done.last.out


@pytest.mark.parametrize(
    "text, part",
    [
        ("assert property (@(posedge clk) a throughout b);", "ThroughoutSequenceExpr"),
        ("assert property (@(posedge clk) a[*3] |-> b);", "not supported"),
        ("assert property (@(negedge clk) a);", "posedge"),
        ("assert property (a);", "clock"),
        ("cover property (@(posedge clk) a);", "CoverPropertyStatement"),
        ("assert property (@(posedge clk) a ##[1:$] b);", "number"),
        ("assert property (@(posedge clk) a ##99 b);", "within"),
        ("assert property (@(posedge clk) $countones(a) == 1);", "countones"),
        ("assert property (@(posedge clk) $past($past(a)));", "nested"),
        ("asert propert", "assertion"),
        ("assign a = b;", "concurrent"),
    ],
)
def test_what_is_outside_of_the_subset_is_named(text, part):
    with pytest.raises(DataError, match=part):
        lower(text)


def test_unusable_designs_are_errors():
    if not (has("iverilog") and has("yosys")):
        pytest.skip("a tool is absent (Debian packages: iverilog, yosys)")
    with pytest.raises(DataError, match="no module"):
        check("wire a;", [prop("a")])
    with pytest.raises(DataError, match="does not compile"):
        check("module m(input clk); broken endmodule", [prop("a")])


def test_the_cone_follows_drivers():
    cell = {"type": "$dff", "port_directions": {"D": "input", "Q": "output"}}
    chain = {f"f{i}": {**cell, "connections": {"D": [i], "Q": [i + 1]}} for i in range(1, 5)}
    names = {"x": {"bits": [3]}, "sva0_age": {"bits": [5]}}
    netlist = {"cells": chain, "netnames": names}
    assert cone_share(netlist, ["x"]) == pytest.approx(2 / 3) and cone_share(netlist, []) == 0.0
    assert cone_share({"cells": {}, "netnames": {}}, []) is None
