"""What becomes of assertions: simulated with random inputs, proved by induction, and counted.

Every assertion gets one status: invalid (it does not parse, is outside of the subset, or names signals that are not
there), falsified (a run or a bounded proof breaks it), vacuous (its left side can never match), proved (by temporal
induction), undecided. Designs in VHDL are not checked, and said to be so.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from apps.rtl.assertions.lower import Monitor, lower
from apps.rtl.source import tokens, top_of
from apps.rtl.syntax import ports
from core.errors import DataError
from core.execution import ExecCache, ExecResult, Policy, Sandbox, Step, tool

Status = Literal["invalid", "falsified", "vacuous", "proved", "undecided"]


@dataclass(frozen=True)
class Checked:
    """An assertion's status and the reason for it."""

    text: str
    status: Status
    why: str = ""


@dataclass
class AssertionReport:
    """Statuses of all assertions of a design, and the share of its state bits that proved ones depend on."""

    checked: list[Checked]
    coverage: float | None
    header: str = "own lowering and yosys induction, not the commercial prover of the official flow"
    counts: Counter = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counter(c.status for c in self.checked)


def check(
    code: str,
    assertions: Sequence[str],
    *,
    top: str | None = None,
    reset: tuple[str, int] | None = None,
    cycles: int = 400,
    steps: int = 12,
    seconds: float = 20,
    cache: ExecCache | None = None,
) -> AssertionReport:
    """Check `assertions` on the module `top` of `code`.

    Args:
        reset: name and active level; it holds in the first cycle, and the proof assumes so.
        cycles: of random simulation. steps: of induction, and of the bounded search before it.

    Raises:
        DataError: the design has no such module, or does not compile by itself. ToolMissing: iverilog or yosys.
    """
    tool("iverilog"), tool("yosys")
    top = top or top_of(code)
    if top is None:
        raise DataError("the design has no module", hint="nothing to check")
    box = Sandbox.best(Policy(wall_s=seconds, cpu_s=seconds + 2, mem_mb=1536, max_output_kb=512))
    runner = _Runner(box, cache)
    if not runner.compiles(code, top):
        raise DataError(f"the design {top} does not compile by itself", hint="check it without assertions first")
    found: list[Checked] = []
    proved: list[Monitor] = []
    for index, text in enumerate(assertions):
        try:
            monitor = lower(text, f"sva{index}")
        except DataError as error:
            found.append(Checked(text, "invalid", error.what))
            continue
        status, why = _status(runner, code, top, monitor, reset, cycles, steps)
        found.append(Checked(text, status, why))
        if status == "proved":
            proved.append(monitor)
    return AssertionReport(found, runner.coverage(code, top, proved))


def _status(
    runner: _Runner, code: str, top: str, monitor: Monitor, reset, cycles: int, steps: int
) -> tuple[Status, str]:
    watched = _inserted(code, top, monitor, _PRINTS)
    run = runner.simulate(watched, code, top, monitor, reset, cycles)
    if run.steps[0].rc != 0:
        line = next((s for s in run.steps[0].err.splitlines() if "rror" in s), run.steps[0].err[:160])
        return "invalid", line[:200]
    if "SVA_FAIL" in run.last.out:
        return "falsified", "a random simulation breaks it: " + run.last.out.split("SVA_FAIL")[1].split("\n")[0].strip()
    formal = _inserted(code, top, monitor, _ASSERT + _assumed(monitor, reset))
    if runner.sat(formal, top, f"-seq 1 -prove-asserts -set-assumes -tempinduct -maxsteps {steps}"):
        reach = _inserted(code, top, monitor, _NEVER + _assumed(monitor, reset))
        if "SVA_SEEN" not in run.last.out and runner.sat(
            reach, top, f"-seq 1 -prove-asserts -set-assumes -tempinduct -maxsteps {steps}"
        ):
            return "vacuous", "the left side never matches"
        return "proved", ""
    if runner.refutes(formal, top, f"-seq {steps + monitor.depth} -prove-asserts -set-assumes"):
        return "falsified", "a bounded proof breaks it"
    return "undecided", f"neither broken nor proved within {steps} steps"


_PRINTS = (
    'always @(posedge {clock}) begin if ({fail}) $display("SVA_FAIL at time %0t", $time); '
    'if ({seen}) $display("SVA_SEEN"); end'
)
_ASSERT = "always @(posedge {clock}) assert (!{fail});"
_NEVER = "always @(posedge {clock}) assert (!{seen});"


def _assumed(monitor: Monitor, reset: tuple[str, int] | None) -> str:
    if reset is None:
        return ""
    name, level = reset
    first = f"{monitor.fail}_first"
    return (
        f"\nreg {first} = 1; always @(posedge {{clock}}) {first} <= 0;"
        f"\nalways @(posedge {{clock}}) if ({first}) assume ({name} == 1'b{level});"
    )


def _inserted(code: str, top: str, monitor: Monitor, use: str) -> str:
    """The design with a monitor at the end of its top module."""
    ends = use.format(clock=monitor.clock, fail=monitor.fail, seen=monitor.seen)
    parts, inside, previous = [], False, ""
    for token in tokens(code, space=True):
        if previous == "module" and token.text == top:
            inside = True
        if inside and token.text == "endmodule":
            parts.append("\n".join(["", *monitor.lines, ends, ""]))
            inside = False
        parts.append(token.text)
        if token.kind != "space":
            previous = token.text
    return "".join(parts)


@dataclass
class _Runner:
    """The tools, in the sandbox."""

    box: Sandbox
    cache: ExecCache | None

    def run(self, steps: list[Step], files: dict[str, str], collect: Sequence[str] = ()) -> ExecResult:
        if self.cache is not None:
            return self.cache.run(self.box, steps, files, collect)
        return self.box.run(steps, files, collect)

    def compiles(self, code: str, top: str) -> bool:
        return self.run([Step(["iverilog", "-g2012", "-s", top, "-o", "x", "d.sv"])], {"d.sv": code}).ok

    def simulate(self, watched: str, code: str, top: str, monitor: Monitor, reset, cycles: int) -> ExecResult:
        bench = _random_bench(code, top, monitor.clock, reset, cycles)
        commands = [
            Step(["iverilog", "-g2012", "-s", "sva_tb", "-o", "x", "d.sv", "t.sv"]),
            Step(["vvp", "-n", "x"], only_if=0),
        ]
        return self.run(commands, {"d.sv": watched, "t.sv": bench})

    def _yosys(self, code: str, top: str, rest: str) -> ExecResult:
        script = f"read_verilog -formal -sv d.sv; prep -flatten -top {top}; memory_map; async2sync; opt_clean; {rest}"
        return self.run([Step(["yosys", "-q", "-p", script])], {"d.sv": code})

    def sat(self, code: str, top: str, options: str) -> bool:
        """Whether the proof succeeds."""
        return self._yosys(code, top, f"sat -verify {options} {top}").ok

    def refutes(self, code: str, top: str, options: str) -> bool:
        """Whether a counterexample is found; a tool that fails has found none."""
        return self._yosys(code, top, f"sat -falsify {options} {top}").ok

    def coverage(self, code: str, top: str, proved: Sequence[Monitor]) -> float | None:
        """State bits in the cone of the proved monitors, as a share of all; None for a design without state."""
        outputs = []
        watched = code
        for monitor in proved:
            watched = _inserted(watched, top, monitor, "(* keep *) wire {fail}_kept = {fail};")
            outputs.append(monitor.fail)
        script = f"read_verilog -sv d.sv; prep -flatten -top {top}; write_json net.json"
        run = self.run([Step(["yosys", "-q", "-p", script])], {"d.sv": watched}, ["net.json"])
        if not run.ok:
            return None
        netlist = json.loads(run.artifacts["net.json"])["modules"][top]
        return cone_share(netlist, outputs)


_HISTORY = re.compile(r"sva\d+_(e\d+_\d+|age)")
"""Registers of monitors, which are no state of the design."""


def cone_share(netlist: dict, roots: Sequence[str]) -> float | None:
    """Of a module in yosys's JSON: the share of state bits that the named wires depend on, monitors not counted."""
    drivers: dict[int, dict] = {}
    own: set[int] = set()
    for name, net in netlist["netnames"].items():
        if _HISTORY.fullmatch(name):
            own |= {b for b in net["bits"] if isinstance(b, int)}
    state: set[int] = set()
    for cell in netlist["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "output":
                for bit in bits:
                    drivers[bit] = cell
                    if "dff" in cell["type"] or "dlatch" in cell["type"]:
                        state.add(bit)
    state -= own
    if not state:
        return None
    waiting = deque(
        b for root in roots for b in netlist["netnames"].get(root, {"bits": []})["bits"] if isinstance(b, int)
    )
    seen: set[int] = set()
    while waiting:
        bit = waiting.popleft()
        if bit in seen:
            continue
        seen.add(bit)
        cell = drivers.get(bit)
        if cell is not None:
            for port, bits in cell["connections"].items():
                if cell["port_directions"].get(port) == "input":
                    waiting.extend(b for b in bits if isinstance(b, int))
    return len(seen & state) / len(state)


def _random_bench(code: str, top: str, clock: str, reset: tuple[str, int] | None, cycles: int) -> str:
    """A testbench that drives every input at random; the reset holds at first and comes back now and then."""
    known = ports(code, top)
    if known is None:
        raise DataError(f"the ports of {top} cannot be read", hint="install graft[rtl] and check the module's header")
    inputs = [p for p in known if p.direction == "in" and p.name != clock]
    # a reset that is set twice at one time would be an edge to an asynchronous design
    drawn = [p for p in inputs if reset is None or p.name != reset[0]]
    declared = "".join(f"  reg [{p.width - 1}:0] {p.name} = 0;\n" for p in inputs)
    draws = "".join(f"      {p.name} = {{{', '.join(['$random'] * (p.width // 32 + 1))}}};\n" for p in drawn)
    if reset is not None:
        name, level = reset
        draws += f"      {name} = (i < 2 || $random % 50 == 0) ? 1'b{level} : 1'b{1 - level};\n"
    joined = ", ".join([f".{clock}({clock})", *(f".{p.name}({p.name})" for p in inputs)])
    return (
        f"module sva_tb;\n  reg {clock} = 0;\n  integer i;\n{declared}  {top} dut ({joined});\n  initial begin\n"
        f"    for (i = 0; i < {cycles}; i = i + 1) begin\n{draws}      #5 {clock} = 1; #5 {clock} = 0;\n    end\n"
        "    $finish;\n  end\nendmodule\n"
    )
