"""Testbenches of generated units: one line of hexadecimal a cycle, every input and the wanted output in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Fields = Sequence[tuple[str, int]]
"""Names and widths, most significant first; `check` says that the output is compared, `wanted` with what."""


def line(fields: Fields, **values: int) -> str:
    """A cycle: fields that are not given are 0, negative numbers two's complement."""
    number = 0
    for name, width in fields:
        number = number << width | (values.get(name, 0) & ((1 << width) - 1))
    return f"{number:x}"


def word(values: Iterable[Any], bits: int) -> int:
    """Values side by side, the first one lowest."""
    return sum((int(v) & ((1 << bits) - 1)) << (bits * i) for i, v in enumerate(values))


def testbench(fields: Fields, lines: int, top: str, output: str) -> str:
    """The module `tb` that plays `vectors.hex` to `top` and compares `output`; reported as VerilogEval does."""
    width = sum(w for _, w in fields)
    declared = "".join(f"  reg [{w - 1}:0] {n};\n" if w > 1 else f"  reg {n};\n" for n, w in fields)
    ports = [n for n, _ in fields if n not in ("check", "wanted")]
    wanted = dict(fields)["wanted"]
    return f"""`timescale 1ns/1ns
module tb;
  reg [{width - 1}:0] vectors [0:{lines - 1}];
  reg clk = 0;
  integer i, errors = 0, samples = 0;
{declared}  wire [{wanted - 1}:0] {output}_dut;
  {top} dut (.clk(clk), {", ".join(f".{n}({n})" for n in ports)}, .{output}({output}_dut));
  initial begin
    $readmemh("vectors.hex", vectors);
    for (i = 0; i < {lines}; i = i + 1) begin
      {{{", ".join(n for n, _ in fields)}}} = vectors[i];
      #2;
      if (check) begin
        samples = samples + 1;
        if ({output}_dut !== wanted) errors = errors + 1;
      end
      clk = 1; #5 clk = 0; #3;
    end
    $display("Mismatches: %1d in %1d samples", errors, samples);
    $finish;
  end
endmodule
"""
