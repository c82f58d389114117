"""Multiply-accumulate units as Verilog: the plain one and its bit-weight transformations, each with model and test.

All have the same meaning: `sum` is the dot product of the operands taken while `valid` was 1 since the last `clear`.
They differ in what lies between two registers: the plain unit adds with a carry that runs through the whole accumulator
in every cycle; OPT1 keeps sum and carry words and adds them once, outside the loop; OPT3 takes one recoded digit a
cycle and skips zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from apps.rtl.accel.bench import line, testbench
from apps.rtl.accel.encode import sign_magnitude
from apps.rtl.example import RtlExample
from core.errors import ConfigError

Kind = Literal["plain", "opt1", "opt3"]
KINDS: tuple[Kind, ...] = ("plain", "opt1", "opt3")


@dataclass(frozen=True)
class MacConfig:
    """A unit: its kind, bits of the operands and of the accumulator.

    Args:
        final: add the two accumulator words within the unit. Without it they leave as `sum` and `carry`, for an adder
            that many units share outside the loop; the plain unit has only one word.
    """

    kind: Kind = "plain"
    bits: int = 8
    acc: int = 24
    final: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown unit '{self.kind}'", hint=f"known: {', '.join(KINDS)}")
        if not 2 <= self.bits <= 16 or self.bits % 2 or not 2 * self.bits <= self.acc <= 64:
            raise ConfigError(
                "bits is even, from 2 to 16, and acc at least twice that and at most 64", where="MacConfig"
            )


def golden(a: np.ndarray, b: np.ndarray, acc: int) -> int:
    """The dot product modulo 2^acc, as a signed number."""
    total = int((a.astype(object) * b.astype(object)).sum()) % (1 << acc)
    return total - (1 << acc) if total >> (acc - 1) else total


def verilog(config: MacConfig, name: str = "mac") -> str:
    """The unit's Verilog."""
    return {"plain": _plain, "opt1": _opt1, "opt3": _opt3}[config.kind](config, name)


def _header(c: MacConfig, name: str, operands: str) -> str:
    carry = "" if c.final or c.kind == "plain" else f",\n  output [{c.acc - 1}:0] carry"
    return (
        f"module {name} (\n  input clk,\n  input clear,\n  input valid,\n{operands}"
        f"  output signed [{c.acc - 1}:0] sum{carry}\n);\n"
    )


def _words(c: MacConfig) -> str:
    """The two accumulator words, and how they leave."""
    out = "  assign sum = s + t;\n" if c.final else "  assign sum = s;\n  assign carry = t;\n"
    return f"  reg [{c.acc - 1}:0] s, t;\n{out}"


def _pair(c: MacConfig) -> str:
    return f"  input signed [{c.bits - 1}:0] a,\n  input signed [{c.bits - 1}:0] b,\n"


def _plain(c: MacConfig, name: str) -> str:
    return _header(c, name, _pair(c)) + (
        f"  reg signed [{c.acc - 1}:0] total;\n  assign sum = total;\n  always @(posedge clk)\n"
        "    if (clear) total <= 0;\n    else if (valid) total <= total + a * b;\nendmodule\n"
    )


def _opt1(c: MacConfig, name: str) -> str:
    """Partial products of Booth digits and both accumulator words go through a tree of 3:2 compressors."""
    w, half = c.acc, c.bits // 2
    lines = [_words(c)]
    rows = ["s", "t"]
    lines.append(f"  wire [{c.bits}:0] padded = {{a, 1'b0}};\n")
    lines.append(f"  wire [{w - 1}:0] wide = {{{{{w - c.bits}{{b[{c.bits - 1}]}}}}, b}};\n")
    for i in range(half):
        d = f"d{i}"
        lines.append(f"  wire [2:0] {d} = padded[{2 * i + 2}:{2 * i}];\n")
        one, two, negative = f"({d}[1] ^ {d}[0])", f"(({d} == 3'b011) | ({d} == 3'b100))", f"({d}[2] & ~&{d}[1:0])"
        lines.append(f"  wire [{w - 1}:0] m{i} = ({{{w}{{{one}}}}} & wide) | ({{{w}{{{two}}}}} & (wide << 1));\n")
        lines.append(f"  wire [{w - 1}:0] p{i} = (m{i} ^ {{{w}{{{negative}}}}}) << {2 * i};\n")
        rows.append(f"p{i}")
    # a complemented product lacks a one at its own bit weight; the ones of all products share one word
    ones = " | ".join(f"({{{{{w - 1}{{1'b0}}}}, (d{i}[2] & ~&d{i}[1:0])}} << {2 * i})" for i in range(half))
    lines.append(f"  wire [{w - 1}:0] ones = {ones};\n")
    rows.append("ones")
    level = 0
    while len(rows) > 2:
        following = []
        for j in range(0, len(rows) - 2, 3):
            x, y, z = rows[j : j + 3]
            u, v = f"u{level}_{j}", f"v{level}_{j}"
            lines.append(f"  wire [{w - 1}:0] {u} = {x} ^ {y} ^ {z};\n")
            lines.append(f"  wire [{w - 1}:0] {v} = (({x} & {y}) | ({x} & {z}) | ({y} & {z})) << 1;\n")
            following += [u, v]
        following += rows[len(rows) - len(rows) % 3 :]
        rows, level = following, level + 1
    lines.append(
        f"  always @(posedge clk)\n    if (clear) begin s <= 0; t <= 0; end\n"
        f"    else if (valid) begin s <= {rows[0]}; t <= {rows[1]}; end\nendmodule\n"
    )
    return _header(c, name, _pair(c)) + "".join(lines)


def _opt3(c: MacConfig, name: str) -> str:
    """One recoded digit a cycle: `digit` in {-2..2} as sign and magnitude, `weight` its power of four."""
    w = c.acc
    operands = (
        f"  input negative,\n  input [1:0] magnitude,\n  input [3:0] weight,\n  input signed [{c.bits - 1}:0] b,\n"
    )
    return _header(c, name, operands) + (
        f"{_words(c)}  wire [{w - 1}:0] wide = {{{{{w - c.bits}{{b[{c.bits - 1}]}}}}, b}};\n"
        f"  wire [{w - 1}:0] m = ({{{w}{{magnitude[0]}}}} & wide) | ({{{w}{{magnitude[1]}}}} & (wide << 1));\n"
        f"  wire [{w - 1}:0] p = (negative ? ~m : m) << {{weight, 1'b0}};\n"
        f"  wire [{w - 1}:0] one = {{{{{w - 1}{{1'b0}}}}, negative}} << {{weight, 1'b0}};\n"
        f"  wire [{w - 1}:0] u = s ^ t ^ p;\n"
        f"  wire [{w - 1}:0] v = ((s & t) | (s & p) | (t & p)) << 1;\n"
        f"  wire [{w - 1}:0] x = u ^ v ^ one;\n"
        f"  wire [{w - 1}:0] y = ((u & v) | (u & one) | (v & one)) << 1;\n"
        "  always @(posedge clk)\n    if (clear) begin s <= 0; t <= 0; end\n"
        "    else if (valid) begin s <= x; t <= y; end\nendmodule\n"
    )


def cycles(config: MacConfig, a: np.ndarray) -> int:
    """Cycles that a dot product takes: one an element, or for OPT3 one a non-zero digit."""
    return int((sign_magnitude(a, config.bits) != 0).sum()) if config.kind == "opt3" else len(a)


def example(config: MacConfig, *, vectors: int = 100, size: int = 16, seed: int = 0, top: str = "mac") -> RtlExample:
    """The unit as a task: Verilog as reference, and a self-checking testbench with values from numpy.

    Args:
        vectors: dot products to check. size: elements of each.
    """
    if not config.final and config.kind != "plain":
        raise ConfigError("a unit that keeps two words is tested with its final addition", hint="set final to True")
    draw = np.random.default_rng(seed)
    limit = 1 << (config.bits - 1)
    fields, lines = _fields(config), []
    for _ in range(vectors):
        a, b = (draw.integers(-limit, limit, size) for _ in range(2))
        lines.append(line(fields, clear=1))
        for step in _steps(config, a, b):
            lines.append(line(fields, valid=1, **step))
        lines.append(line(fields, check=1, wanted=golden(a, b, config.acc)))
    return RtlExample(
        f"A {config.bits}-bit multiply-accumulate unit ({config.kind}) with {config.acc} bits of sum.", "", top,
        verilog(config, top), top, testbench(fields, len(lines), top, "sum"), "tb",
        {"vectors.hex": "\n".join(lines) + "\n"},
        family="accel", id=f"mac-{config.kind}-{config.bits}-{config.acc}",
    )  # fmt: skip


def _steps(c: MacConfig, a: np.ndarray, b: np.ndarray) -> list[dict[str, int]]:
    if c.kind != "opt3":
        return [{"a": int(x), "b": int(y)} for x, y in zip(a, b)]
    digits = sign_magnitude(a, c.bits)
    return [
        {"b": int(b[k]), "negative": int(d < 0), "magnitude": abs(int(d)), "weight": w}
        for k in range(len(a))
        for w, d in enumerate(digits[k])
        if d
    ]


def _fields(c: MacConfig) -> list[tuple[str, int]]:
    operands = [("negative", 1), ("magnitude", 2), ("weight", 4)] if c.kind == "opt3" else [("a", c.bits)]
    return [("clear", 1), ("valid", 1), ("check", 1), *operands, ("b", c.bits), ("wanted", c.acc)]
