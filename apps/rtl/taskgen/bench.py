"""A self-checking testbench from a golden model: vectors of inputs and expected outputs, compared cycle by cycle.

The report has VerilogEval's form (`Mismatches: M in N samples`), and signals are called `…_ref` and `…_dut`, so that
everything that reads those reads these. Outputs that the model leaves open in a cycle are not compared.
"""

from __future__ import annotations

import random

from apps.rtl.taskgen.family import Built, Values, mask

CYCLES = 160
EXHAUSTIVE = 9


def vectors(built: Built, seed: str, cycles: int = CYCLES) -> list[tuple[Values, Values]]:
    """Inputs and expected outputs of each cycle; all inputs where they are few, else corners and random ones.

    A clocked module is reset for the first two cycles, and now and then again.
    """
    draw, model = random.Random(seed), built.model()
    pins = built.inputs
    total = sum(p.width for p in pins)
    found = []
    if not built.clocked and total <= EXHAUSTIVE:
        for number in range(1 << total):
            values, rest = {}, number
            for pin in pins:
                values[pin.name], rest = rest & mask(pin.width), rest >> pin.width
            found.append((values, model(values)))
        return found
    for cycle in range(cycles):
        values = {p.name: _value(draw, p.width) for p in pins}
        if not built.clocked and len(pins) > 1 and draw.random() < 0.15:
            values[pins[1].name] = values[pins[0].name] & mask(pins[1].width)
        if built.reset is not None:
            name, active = built.reset
            values[name] = active if cycle < 2 or draw.random() < 0.02 else 1 - active
        found.append((values, model(values)))
    return found


def _value(draw: random.Random, width: int) -> int:
    kind = draw.random()
    if width == 1 or kind < 0.75:
        return draw.getrandbits(width)
    return draw.choice((0, 1, mask(width), mask(width) - 1, 1 << (width - 1)))


def testbench(built: Built, top: str, seed: str, cycles: int = CYCLES) -> tuple[str, dict[str, str]]:
    """The testbench `tb` and the file of vectors that it reads.

    A line of the file holds, most significant first: inputs, expected outputs, and one bit for each output that says
    whether it is compared.
    """
    rows = vectors(built, seed, cycles)
    inputs, outputs = built.inputs, built.outputs
    lines, widths = [], [p.width for p in inputs] + [p.width for p in outputs] + [1] * len(outputs)
    for given, wanted in rows:
        fields = [given[p.name] for p in inputs] + [wanted.get(p.name, 0) for p in outputs]
        fields += [int(p.name in wanted) for p in outputs]
        number = 0
        for value, width in zip(fields, widths):
            number = number << width | value
        lines.append(f"{number:x}")
    names = [p.name for p in inputs] + [f"{p.name}_ref" for p in outputs] + [f"{p.name}_check" for p in outputs]
    declared = "".join(f"  reg {_bits(p.width)}{p.name};\n" for p in inputs)
    declared += "".join(
        f"  reg {_bits(p.width)}{p.name}_ref; reg {p.name}_check; wire {_bits(p.width)}{p.name}_dut;\n"
        f"  integer errors_{p.name} = 0, first_{p.name} = 0;\n"
        for p in outputs
    )
    ports = ", ".join(
        [f".{p.name}({p.name})" for p in ([] if not built.clocked else [built.pins[0]]) + inputs]
        + [f".{p.name}({p.name}_dut)" for p in outputs]
    )
    compare = "".join(
        f"    if ({p.name}_check && {p.name}_dut !== {p.name}_ref) begin\n      tb_mismatch = 1;\n"
        f"      if (errors_{p.name} == 0) first_{p.name} = $time;\n      errors_{p.name} = errors_{p.name} + 1;\n"
        "    end\n"
        for p in outputs
    )
    hints = "".join(
        f"    if (errors_{p.name}) $display(\"Hint: Output '{p.name}' has %0d mismatches. "
        f'First mismatch occurred at time %0d.", errors_{p.name}, first_{p.name});\n'
        for p in outputs
    )
    sample = "    #2 clk = 1; #2;\n" if built.clocked else "    #4;\n"
    rest = "    #3 clk = 0; #1;\n" if built.clocked else "    #4;\n"
    text = f"""`timescale 1ns/1ns
module tb;
  reg [{sum(widths) - 1}:0] vectors [0:{len(rows) - 1}];
  reg clk = 0, tb_mismatch = 0;
  integer i, errors = 0, samples = 0;
{declared}  {top} dut ({ports});
  initial begin
    $dumpfile("wave.vcd");
    $dumpvars(1, tb);
    $readmemh("vectors.hex", vectors);
    for (i = 0; i < {len(rows)}; i = i + 1) begin
    {{{", ".join(names)}}} = vectors[i];
    tb_mismatch = 0;
{sample}{compare}    errors = errors + tb_mismatch;
    samples = samples + 1;
{rest}    end
{hints}    $display("Mismatches: %1d in %1d samples", errors, samples);
    $finish;
  end
endmodule
"""
    return text, {"vectors.hex": "\n".join(lines) + "\n"}


def _bits(width: int) -> str:
    return f"[{width - 1}:0] " if width > 1 else ""
