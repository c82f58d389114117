"""Verilog as tokens: extraction, renaming, structure and the policy."""

from __future__ import annotations

import pytest

from apps.rtl import source

FULL = "module TopModule (input a, output b);\n  assign b = a;\nendmodule\n"


@pytest.mark.parametrize(
    "answer",
    [
        FULL,
        f"Sure!\n```verilog\n{FULL}```\nThat is a module.",
        f"```\n{FULL}\n```",
        f"The module is below.\n\n{FULL}\nIt copies a to b. endmodule closes it.".replace(" endmodule closes it", ""),
        FULL.replace("\n", "\r\n"),
    ],
)
def test_code_is_taken_out_of_an_answer(answer):
    assert source.extract(answer).split() == FULL.split()


def test_a_continuation_gets_the_header_and_its_end():
    header = "module TopModule (input a, output b);"
    for body in ("  assign b = a;\nendmodule", "  assign b = a;", "```verilog\n  assign b = a;\nendmodule\n```"):
        assert source.extract(body, header).split() == FULL.split()
    assert source.extract("no code here") == "" and source.extract("", header) == ""


def test_a_fence_keeps_what_stands_before_the_module():
    code = "typedef enum logic {A, B} t;\n" + FULL
    assert source.extract(f"```systemverilog\n{code}```").split() == code.split()
    assert source.extract(code).split() == code.split()


def test_an_answer_that_was_cut_stays_cut():
    assert "endmodule" not in source.extract("```verilog\nmodule TopModule (input a);\n  assign")


def test_renaming_leaves_strings_and_comments_alone():
    code = 'module A; // A here\n  initial $display("A"); A1 x (.A(A)); endmodule'
    assert source.renamed(code, {"A": "B"}) == ('module B; // A here\n  initial $display("A"); A1 x (.B(B)); endmodule')


def test_tokens_join_to_the_source_and_know_their_lines():
    code = "module m; /* two\nlines */ wire [7:0] a = 8'hFF; // end\n`define X 1\nendmodule"
    assert "".join(t.text for t in source.tokens(code, space=True)) == code
    assert {t.text: t.line for t in source.tokens(code)}["endmodule"] == 4


def test_the_top_is_what_nobody_instantiates():
    code = "module a(input x); endmodule module b(input y); a u (.x(y)); endmodule"
    assert source.module_names(code) == ["a", "b"] and source.top_of(code) == "b"
    assert source.top_of(code.replace("a u", "a #(.N(2)) u")) == "b"
    assert source.top_of("assign x = 1;") is None


@pytest.mark.parametrize(
    "body",
    [
        "typedef struct packed {logic v;} s_t; s_t s; assign b = s.v; assign s.v = a;",
        "sub u (.x(a), .y(b)); wire w = u.inner;",
        "generate for (genvar i = 0; i < 2; i = i + 1) begin : g wire w; end endgenerate assign b = g[0].w;",
        "assign b = $signed(a) >>> $clog2(4);",
        "always_comb begin : blk automatic logic t; t = a; b = t; end",
        "logic [1:0] s; assign b = s[$]; // $finish",
    ],
)
def test_honest_code_is_not_refused(body):
    code = f"module TopModule (input a, output logic b);\n{body}\nendmodule\nmodule sub(input x, output y); endmodule"
    assert source.violations(code) == []


@pytest.mark.parametrize(
    "body, line",
    [
        ("\nassign b = tb.q;", 3),
        ("initial $finish;", 2),
        ('`include "x"', 2),
        ("initial force b = 1;", 2),
        ("assign b = top_module1.a;", 2),
        ("assign b = $root.x;", 2),
        ("assign b = \\tb .q ;", 2),
        ("initial b = $random;", 2),
        ("assign b = TopModule.a;", 2),
        ("`define D(x) $``x", 2),
    ],
)
def test_code_that_reaches_out_is_refused_with_its_line(body, line):
    code = f"module TopModule (input a, output logic b);\n{body}\nendmodule"
    found = source.violations(code)
    assert found and found[0].line == line, found


def test_a_task_can_allow_more():
    code = "module TopModule (output reg b); initial b = $random; endmodule"
    assert source.violations(code, frozenset({"$random"})) == []


def test_what_cannot_be_looked_at_is_said():
    assert "no module" in source.problems_of("  ")
    assert "65536" in source.problems_of("x" * 70000)
    assert "line 2" in source.problems_of("module a;\nwire ü;\nendmodule")
    assert source.problems_of("module a; // größer\nendmodule") is None
