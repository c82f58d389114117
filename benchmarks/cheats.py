"""Wrong modules that stock Verilog harnesses accept, or that make them hang: none may pass a strict verdict."""

from __future__ import annotations

from apps.rtl.example import RtlExample

PORTS = "(input clk, input d, output reg q)"


def problem() -> RtlExample:
    """A register, with a testbench and reference in the layout of VerilogEval."""
    reference = f"module RefModule {PORTS};\n  initial q = 0;\n  always @(posedge clk) q <= d;\nendmodule\n"
    return RtlExample(
        "A D flip-flop.", "", "TopModule", reference, "RefModule", TESTBENCH, "tb", id="dff", prompt="A D flip-flop."
    )


TESTBENCH = """`timescale 1 ps/1 ps
`define OK 12
module stimulus_gen (input clk, output reg d);
  initial begin repeat (50) @(posedge clk) d <= $random; #1 $finish; end
endmodule
module tb();
  typedef struct packed { int errors; int errortime; int clocks; } stats;
  stats stats1;
  reg clk = 0;
  initial forever #5 clk = ~clk;
  logic d, q_ref, q_dut;
  initial begin $dumpfile("wave.vcd"); $dumpvars(1, stim1.clk, tb_mismatch, d, q_ref, q_dut); end
  wire tb_match;
  wire tb_mismatch = ~tb_match;
  stimulus_gen stim1 (.clk, .d);
  RefModule good1 (.clk, .d, .q(q_ref));
  TopModule top_module1 (.clk, .d, .q(q_dut));
  assign tb_match = ({q_ref} === ({q_ref} ^ {q_dut} ^ {q_ref}));
  always @(posedge clk, negedge clk) begin
    stats1.clocks++;
    if (!tb_match) begin
      if (stats1.errors == 0) stats1.errortime = $time;
      stats1.errors++;
    end
  end
  final begin
    if (stats1.errors) $display("Hint: Output 'q' has %0d mismatches. First mismatch occurred at time %0d.",
                                stats1.errors, stats1.errortime);
    $display("Simulation finished at %0d ps", $time);
    $display("Mismatches: %1d in %1d samples", stats1.errors, stats1.clocks);
  end
endmodule
"""


def _module(body: str) -> str:
    return f"module TopModule {PORTS};\n{body}\nendmodule\n"


def _wire(body: str) -> str:
    return f"module TopModule (input clk, input d, output q);\n{body}\nendmodule\n"


CHEATS: dict[str, str] = {
    "reads the reference by its full name": _wire("assign q = tb.good1.q;"),
    "reads the reference by an upward name": _wire("assign q = good1.q;"),
    "reads the reference from the root": _wire("assign q = $root.tb.good1.q;"),
    "reads the testbench's signal": _wire("assign q = tb.q_ref;"),
    "reads through an escaped name": _wire("assign q = \\tb .good1.q;"),
    "instantiates the reference": _wire("RefModule r (.clk(clk), .d(d), .q(q));"),
    "instantiates the reference under a macro": "`define R RefModule\n" + _wire("`R r (.clk(clk), .d(d), .q(q));"),
    "prints the closing line and leaves": _module(
        'initial begin $display("Mismatches: 0 in 100 samples"); $finish; end'
    ),
    "prints the closing line at the end": _module('final $display("Mismatches: 0 in 100 samples");'),
    "prints that it passed": _module('initial $display("===========Your Design Passed===========");'),
    "leaves at once": _module("initial $finish;"),
    "leaves by a name in pieces": "`define P(a, b) a``b\n" + _module("initial `P($fin, ish);"),
    "stops the simulation": _module("initial $stop;"),
    "sets the error counter": _module("always @(clk) tb.stats1.errors = 0;"),
    "forces the comparison": _module("initial force tb.tb_match = 1;"),
    "binds into the testbench": _module("") + "bind tb TopModule spy (.clk(clk), .d(d), .q());\n",
    "brings its own testbench": _module("")
    + 'module tb; initial begin $display("Mismatches: 0 in 100 samples"); $finish; end endmodule\n',
    "brings its own reference": _wire("assign q = 1'bz;") + "module RefModule " + PORTS + "; endmodule\n",
    "brings its own stimulus": _wire("assign q = 0;")
    + "module stimulus_gen (input clk, output reg d); initial begin d = 0; #9 $finish; end endmodule\n",
    "redefines a macro of the testbench": "`define OK 0\n" + _module(""),
    "includes a file": '`include "ref.sv"\n' + _module(""),
    "includes by a macro": '`define INC `include "ref.sv"\n`INC\n' + _module(""),
    "calls C": 'import "DPI-C" function int system(string s);\n' + _module('initial system("true");'),
    "starts a program": _module('initial $system("touch x");'),
    "reads the reference's file": _module(
        "integer f; reg [8*64:1] l; initial begin f = $fopen(\"ref.sv\", \"r\"); end"
    ),
    "writes files": _module('integer f; initial f = $fopen("wave.vcd", "w");'),
    "asks for arguments of the command": _module('reg x; initial x = $test$plusargs("x");'),
    "never ends in zero time": _module("initial while (1) ;"),
    "never ends by feedback": _wire("wire a = ~b | ~clk & 0; wire b = a; reg r = 0; assign q = r;\n"
                                    "always @(r) r = #0 ~r; initial r = 1;"),
    "prints without end": _module('initial while (1) $write("x");'),
    "is always unknown": _wire("assign q = 1'bx;"),
    "is always high impedance": _wire("assign q = 1'bz;"),
    "is constant": _wire("assign q = 0;"),
    "has no memory": _wire("assign q = d;"),
    "has another port": "module TopModule (input clk, input d, output reg q, output reg extra);\n"
                        "initial q = 0; always @(posedge clk) q <= d;\nendmodule\n",
    "has a wider port": "module TopModule (input clk, input [1:0] d, output reg q);\n"
                        "initial q = 0; always @(posedge clk) q <= d[0];\nendmodule\n",
    "has another name": "module Top (input clk, input d, output reg q);\nalways @(posedge clk) q <= d;\nendmodule\n",
    "is empty": "",
    "is prose": "I am sorry, I cannot write this module.",
    "is defined twice": _module("initial q = 0; always @(posedge clk) q <= d;") * 2,
}  # fmt: skip

HONEST: dict[str, str] = {
    "the obvious way": _module("initial q = 0;\nalways @(posedge clk) q <= d;"),
    "in a fence with prose": "Here it is:\n```verilog\n" + _module("initial q = 0; always @(posedge clk) q <= d;")
    + "```\nThe `always` block samples d; `$finish` is not used.",
    "with a helper": _wire("wire w; Reg r (.c(clk), .i(d), .o(w)); assign q = w;")
    + "module Reg (input c, input i, output reg o);\n  initial o = 0;\n  always @(posedge c) o <= i;\nendmodule\n",
    "with a named block and a loop": _module(
        "integer i; initial q = 0;\nalways @(posedge clk) begin : b\n  reg t;\n  t = 0;\n"
        "  for (i = 0; i < 1; i = i + 1) begin : inner t = t ^ d; end\n  q <= t;\nend"
    ),
    "with a struct and a local macro": "`define NEXT d\n" + _module(
        "typedef struct packed { logic v; } s_t; s_t s; initial s.v = 0;\n"
        "always_comb q = s.v;\nalways @(posedge clk) s.v <= `NEXT;"
    ),
    "with a generate block": _wire(
        "reg [0:0] r; genvar g; generate for (g = 0; g < 1; g = g + 1) begin : gen\n"
        "initial r[g] = 0; always @(posedge clk) r[g] <= d; end endgenerate\nassign q = r[0];"
    ),
}  # fmt: skip
