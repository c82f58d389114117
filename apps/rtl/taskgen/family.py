"""What a family of generated tasks is: parameters, words, ports, a reference in Verilog and a golden model in Python.

The reference and the golden model are written apart from each other; a testbench's expected values come from the model
alone, so a mistake in one of the two makes the reference fail its own test.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Params = dict[str, Any]
Values = dict[str, int]


@dataclass(frozen=True)
class Pin:
    """A port of a generated module."""

    name: str
    direction: str
    width: int = 1

    def declare(self, kind: str = "") -> str:
        """Its declaration in a header, e.g. `input [7:0] a`."""
        bits = f"[{self.width - 1}:0] " if self.width > 1 else ""
        return f"{self.direction}put {kind}{bits}{self.name}"


@dataclass(frozen=True)
class Built:
    """One member of a family.

    Args:
        does: ways to say what it does, at least two. pins: its ports in order; a clocked module has `clk` first.
        body: Verilog after the header. registers: outputs that are declared `reg`.
        model: makes a fresh golden model: inputs of a cycle → outputs after it. reset: name of its reset, if any,
            and the level that resets.
    """

    does: tuple[str, ...]
    pins: tuple[Pin, ...]
    body: str
    model: Callable[[], Callable[[Values], Values]]
    registers: frozenset[str] = frozenset()
    reset: tuple[str, int] | None = None
    steer: Callable[[random.Random, int], Values] | None = field(default=None, compare=False)

    @property
    def clocked(self) -> bool:
        return self.pins[0].name == "clk"

    @property
    def inputs(self) -> list[Pin]:
        return [p for p in self.pins if p.direction == "in" and p.name != "clk"]

    @property
    def outputs(self) -> list[Pin]:
        return [p for p in self.pins if p.direction == "out"]

    def header(self, top: str) -> str:
        """The module header in one line for each port."""
        ports = ",\n".join(f"  {p.declare('reg ' if p.name in self.registers else '')}" for p in self.pins)
        return f"module {top} (\n{ports}\n);"


@dataclass(frozen=True)
class Family:
    """A family: the grid of its parameters and how a member is built."""

    name: str
    grid: dict[str, Sequence[Any]]
    build: Callable[[Params], Built]
    valid: Callable[[Params], bool] = lambda params: True

    def members(self) -> Iterator[Params]:
        """Every choice of parameters, in a fixed order."""
        for values in itertools.product(*self.grid.values()):
            params = dict(zip(self.grid, values))
            if self.valid(params):
                yield params


FAMILIES: dict[str, Family] = {}


def family(name: str, valid: Callable[[Params], bool] = lambda params: True, **grid: Sequence[Any]) -> Callable:
    """Register `build(params) -> Built` as a family over `grid`."""

    def add(build: Callable[[Params], Built]) -> Callable[[Params], Built]:
        FAMILIES[name] = Family(name, grid, build, valid)
        return build

    return add


def stateless(function: Callable[[Values], Values]) -> Callable[[], Callable[[Values], Values]]:
    """A golden model without memory."""
    return lambda: function


def mask(width: int) -> int:
    return (1 << width) - 1


RESETS = ("sync_high", "sync_low", "async_high", "async_low")


@dataclass(frozen=True)
class Reset:
    """A reset: its pin, its place in a sensitivity list, its condition, and how it is called."""

    kind: str

    @property
    def active(self) -> int:
        return int(self.kind.endswith("high"))

    @property
    def name(self) -> str:
        return "rst" if self.active else "rst_n"

    @property
    def pin(self) -> Pin:
        return Pin(self.name, "in")

    @property
    def edge(self) -> str:
        if self.kind.startswith("sync"):
            return "posedge clk"
        return f"posedge clk or {'posedge' if self.active else 'negedge'} {self.name}"

    @property
    def when(self) -> str:
        return self.name if self.active else f"!{self.name}"

    @property
    def words(self) -> str:
        how = "synchronous" if self.kind.startswith("sync") else "asynchronous"
        return f"{how} active-{'high' if self.active else 'low'} reset {self.name}"

    def always(self, zero: str, otherwise: str) -> str:
        """An always block with this reset."""
        return f"  always @({self.edge})\n    if ({self.when}) {zero}\n    else {otherwise}\n"

    def on(self, values: Values) -> bool:
        return values[self.name] == self.active


class Machine:
    """A golden model with state: `update(state, inputs)` on every clock edge, then `outputs(state, inputs)`."""

    def __init__(
        self,
        start: Any,
        update: Callable[[Any, Values], Any],
        outputs: Callable[[Any, Values], Values],
        reset: Reset | None = None,
    ) -> None:
        self.start, self.state, self.update, self.outputs, self.reset = start, start, update, outputs, reset

    def __call__(self, values: Values) -> Values:
        self.state = self.start if self.reset and self.reset.on(values) else self.update(self.state, values)
        return self.outputs(self.state, values)


def clocked(
    start: Any,
    update: Callable[[Any, Values], Any],
    outputs: Callable[[Any, Values], Values],
    reset: Reset | None = None,
) -> Callable[[], Machine]:
    """A maker of machines."""
    return lambda: Machine(start, update, outputs, reset)
