"""Two more bit-weight transformations as Verilog: reducing equal weights before the shift, and sharing the encoder.

OPT2 adds the digits of several elements that have one bit weight, in few bits, shifts the sum once and accumulates it
in two words. OPT4 recodes an operand once for a whole row of columns; each column only selects, shifts and accumulates,
and an element takes as many cycles as it has digits that are not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from apps.rtl.accel.bench import line, testbench, word
from apps.rtl.accel.encode import sign_magnitude
from apps.rtl.accel.mac import golden
from apps.rtl.example import RtlExample
from core.errors import ConfigError


@dataclass(frozen=True)
class RowConfig:
    """A row of units.

    Args:
        kind: opt2 reduces `width` elements of one dot product a cycle; opt4 serves `width` dot products with one
            operand in common.
        bits: of operands. acc: of a sum.
    """

    kind: Literal["opt2", "opt4"] = "opt2"
    width: int = 4
    bits: int = 8
    acc: int = 24

    def __post_init__(self) -> None:
        if self.kind not in ("opt2", "opt4"):
            raise ConfigError(f"unknown row '{self.kind}'", hint="known: opt2, opt4")
        if not 1 <= self.width <= 32:
            raise ConfigError(f"a row of {self.width}", where="RowConfig", hint="from 1 to 32")
        if not 2 <= self.bits <= 16 or self.bits % 2 or not 2 * self.bits <= self.acc <= 64:
            raise ConfigError("bits is even, from 2 to 16, acc at least twice that and at most 64", where="RowConfig")


def verilog(config: RowConfig, name: str = "row") -> str:
    """The row's Verilog."""
    return _opt2(config, name) if config.kind == "opt2" else _opt4(config, name)


def _multiple(target: str, magnitude: str, operand: str, width: int) -> str:
    """`operand` times 0, 1 or 2."""
    chosen = f"{magnitude} == 2 ? {operand} <<< 1 : {magnitude} == 1 ? {operand} : 0"
    return f"  wire signed [{width - 1}:0] {target} = {chosen};\n"


def _opt2(c: RowConfig, name: str) -> str:
    """First stage: the narrow sum of one bit weight. Second stage: one shift, and a 3:2 compressor into two words."""
    narrow = c.bits + 2 + max(1, (c.width - 1).bit_length())
    w, parts = c.acc, []
    for j in range(c.width):
        parts.append(f"  wire signed [{narrow - 1}:0] b{j} = $signed(b[{c.bits * j} +: {c.bits}]);\n")
        parts.append(_multiple(f"m{j}", f"magnitude[{2 * j} +: 2]", f"b{j}", narrow))
        parts.append(f"  wire signed [{narrow - 1}:0] p{j} = negative[{j}] ? -m{j} : m{j};\n")
    total = " + ".join(f"p{j}" for j in range(c.width))
    return (
        f"module {name} (\n  input clk,\n  input clear,\n  input valid,\n  input [{c.width - 1}:0] negative,\n"
        f"  input [{2 * c.width - 1}:0] magnitude,\n  input [3:0] weight,\n  input [{c.width * c.bits - 1}:0] b,\n"
        f"  output [{w - 1}:0] sum\n);\n" + "".join(parts) +
        f"  reg signed [{narrow - 1}:0] group;\n  reg [3:0] power;\n  reg [{w - 1}:0] s, t;\n"
        f"  wire signed [{w - 1}:0] wide = group;\n  wire [{w - 1}:0] x = wide <<< {{power, 1'b0}};\n"
        "  assign sum = s + t;\n  always @(posedge clk)\n"
        "    if (clear) begin group <= 0; power <= 0; s <= 0; t <= 0; end\n    else begin\n"
        f"      group <= valid ? {total} : 0;\n      power <= weight;\n"
        "      s <= s ^ t ^ x;\n      t <= ((s & t) | (s & x) | (t & x)) << 1;\n    end\nendmodule\n"
    )  # fmt: skip


def _opt4(c: RowConfig, name: str) -> str:
    """The encoder keeps the digits that are still to be served as a mask; the lowest goes to all columns at once."""
    n, w, b = c.bits // 2 + 1, c.acc, c.bits
    place = max(1, (n - 1).bit_length())
    lines = [
        f"module {name} (\n  input clk,\n  input clear,\n  input valid,\n  input signed [{b - 1}:0] a,\n"
        f"  input [{c.width * b - 1}:0] b,\n  output ready,\n  output [{c.width * w - 1}:0] sum\n);\n"
        f"  wire [{2 * n - 1}:0] size = a < 0 ? -{{{{{2 * n - b}{{a[{b - 1}]}}}}, a}} : a;\n  wire carry0 = 0;\n"
    ]
    for i in range(n):
        lines.append(
            f"  wire [2:0] v{i} = size[{2 * i} +: 2] + carry{i};\n  wire carry{i + 1} = v{i} > 2;\n"
            f"  wire one{i} = v{i} == 1 || v{i} == 3, two{i} = v{i} == 2, minus{i} = (v{i} == 3) ^ (a < 0);\n"
        )
    masks = {
        key: "{" + ", ".join(f"{key}{i}" for i in reversed(range(n))) + "}" for key in ("one", "two", "minus")
    }  # fmt: skip
    lowest = "".join(f"pending[{i}] ? {place}'d{i} : " for i in range(n - 1)) + f"{place}'d{n - 1}"
    lines.append(
        f"  reg [{n - 1}:0] pending, doubles, minuses;\n  reg [{c.width * b - 1}:0] held;\n"
        f"  wire [{n - 1}:0] rest = pending & (pending - 1);\n  assign ready = rest == 0;\n"
        f"  wire [{place - 1}:0] at = {lowest};\n"
        "  always @(posedge clk)\n    if (clear) pending <= 0;\n    else if (valid) begin\n"
        f"      pending <= {masks['one']} | {masks['two']};\n      doubles <= {masks['two']};\n"
        f"      minuses <= {masks['minus']};\n      held <= b;\n    end else pending <= rest;\n"
    )
    for j in range(c.width):
        lines.append(
            f"  reg [{w - 1}:0] s{j}, t{j};\n  assign sum[{w * j} +: {w}] = s{j} + t{j};\n"
            f"  wire signed [{w - 1}:0] b{j} = $signed(held[{b * j} +: {b}]);\n"
            f"  wire [{w - 1}:0] m{j} = doubles[at] ? b{j} <<< 1 : b{j};\n"
            f"  wire [{w - 1}:0] p{j} = (minuses[at] ? -m{j} : m{j}) << {{at, 1'b0}};\n"
            f"  always @(posedge clk)\n    if (clear) begin s{j} <= 0; t{j} <= 0; end\n"
            "    else if (pending != 0) begin\n"
            f"      s{j} <= s{j} ^ t{j} ^ p{j};\n"
            f"      t{j} <= ((s{j} & t{j}) | (s{j} & p{j}) | (t{j} & p{j})) << 1;\n    end\n"
        )
    return "".join(lines) + "endmodule\n"


def cycles(config: RowConfig, a: np.ndarray) -> int:
    """Cycles that dot products with `a` take, without the last ones that empty the row."""
    digits = sign_magnitude(a, config.bits)
    if config.kind == "opt2":
        return digits.shape[1] * -(-len(a) // config.width)
    return int(np.maximum(1, (digits != 0).sum(1)).sum())


def example(config: RowConfig, *, vectors: int = 60, size: int = 12, seed: int = 0, top: str = "row") -> RtlExample:
    """The row as a task, with a testbench whose values come from numpy.

    Args:
        vectors: dot products, or for opt4 groups of them. size: elements of each, a multiple of opt2's width.
    """
    c, draw = config, np.random.default_rng(seed)
    if c.kind == "opt2" and size % c.width:
        raise ConfigError(f"{size} elements in groups of {c.width}", where="size", hint="a multiple of the width")
    operands = (
        [("negative", c.width), ("magnitude", 2 * c.width), ("weight", 4)] if c.kind == "opt2" else [("a", c.bits)]
    )
    wanted = c.acc * (1 if c.kind == "opt2" else c.width)
    fields = [("clear", 1), ("valid", 1), ("check", 1), *operands, ("b", c.width * c.bits), ("wanted", wanted)]
    limit, lines = 1 << (c.bits - 1), []
    for _ in range(vectors):
        a = draw.integers(-limit, limit, size)
        b = draw.integers(-limit, limit, (size, 1 if c.kind == "opt2" else c.width))
        lines.append(line(fields, clear=1))
        lines += [line(fields, **step) for step in (_steps2 if c.kind == "opt2" else _steps4)(c, a, b)]
        sums = [golden(a, b[:, j], c.acc) for j in range(b.shape[1])]
        lines.append(line(fields, check=1, wanted=word(sums, c.acc)))
    return RtlExample(
        f"A row of {c.width} for {c.bits}-bit dot products ({c.kind}).", "", top, verilog(c, top), top,
        testbench(fields, len(lines), top, "sum"), "tb", {"vectors.hex": "\n".join(lines) + "\n"}, family="accel",
        id=f"row-{c.kind}-{c.width}-{c.bits}-{c.acc}",
    )  # fmt: skip


def _steps2(c: RowConfig, a: np.ndarray, b: np.ndarray) -> list[dict[str, int]]:
    digits, found = sign_magnitude(a, c.bits), []
    for weight in range(digits.shape[1]):
        for at in range(0, len(a), c.width):
            d = digits[at : at + c.width, weight]
            found.append({
                "valid": 1, "weight": weight, "negative": word(d < 0, 1), "magnitude": word(abs(d), 2),
                "b": word(b[at : at + c.width, 0], c.bits),
            })  # fmt: skip
    return [*found, {}]


def _steps4(c: RowConfig, a: np.ndarray, b: np.ndarray) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for k, count in enumerate((sign_magnitude(a, c.bits) != 0).sum(1)):
        found += [{"valid": 1, "a": int(a[k]), "b": word(b[k], c.bits)}, *[{}] * (int(count) - 1)]
    return [*found, {}]
