"""Whether two designs do the same, proved by yosys: for mutants that no testbench kills, and for votes without one.

Both designs become one netlist of pairs of signals (`equiv_make`), which are proved equal by structure and by
induction; what that leaves open is tried as a miter with a SAT solver, from reset-free power-up. A proof is a proof; a
counterexample to induction is not one of equality, so the answer is "equal", "different" or "unknown".
"""

from __future__ import annotations

from typing import Literal

from apps.rtl.source import renamed
from core.execution import ExecCache, Policy, Sandbox, Step, tool

Answer = Literal["equal", "different", "unknown"]


def equivalent(
    first: str,
    second: str,
    top: str,
    second_top: str | None = None,
    *,
    level: str = "strict",
    seconds: float = 20,
    cache: ExecCache | None = None,
) -> Answer:
    """Compare module `top` of `first` with `second_top` (by default the same name) of `second`.

    Raises:
        ToolMissing: yosys is not installed.
    """
    tool("yosys")
    box = Sandbox.best(Policy(wall_s=seconds, cpu_s=seconds + 2, mem_mb=1536, level=level))  # type: ignore[arg-type]
    files = {"a.sv": _private(first, top, "gold"), "b.sv": _private(second, second_top or top, "gate")}
    for script in (_STRUCTURE, _MITER):
        steps = [Step(["yosys", "-q", "-p", script])]
        run = cache.run(box, steps, files) if cache is not None else box.run(steps, files)
        text = run.last.out + run.last.err
        if run.ok:
            return "equal"
        if script is _MITER and ("model found" in text or "proof did fail" in text.lower()):
            return "different"
    return "unknown"


_READ = (
    "read_verilog -sv a.sv; prep -flatten -top gold; design -stash a; read_verilog -sv b.sv; prep -flatten -top gate; "
    "design -stash b; design -copy-from a -as gold gold; design -copy-from b -as gate gate; "
)
_STRUCTURE = _READ + (
    "equiv_make gold gate both; hierarchy -top both; equiv_struct; equiv_simple -undef; equiv_induct -undef; "
    "equiv_status -assert"
)
_MITER = _READ + (
    "miter -equiv -flatten gold gate miter; hierarchy -top miter; async2sync; "
    "sat -verify -prove trigger 0 -seq 1 -set-init-zero -tempinduct -maxsteps 20 miter"
)


def _private(code: str, top: str, name: str) -> str:
    """`code` with its top called `name` and its other modules apart from those of the other design."""
    from apps.rtl.source import module_names

    names = {other: f"{other}_{name}" for other in module_names(code)}
    return renamed(code, {**names, top: name})
