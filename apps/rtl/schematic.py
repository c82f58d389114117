"""A design as a picture of its netlist: yosys reads it, graphviz lays it out, both inside the sandbox."""

from __future__ import annotations

from apps.rtl.source import top_of
from core.errors import DataError
from core.execution import Policy, Sandbox, Step, tool


def schematic(code: str, top: str | None = None, *, seconds: float = 20) -> str:
    """The netlist of `code` before mapping to gates, as SVG. To be shown as an image: its text comes from the code.

    Raises:
        ToolMissing: yosys or graphviz is not installed. DataError: yosys does not read it, or it is too large to draw.
    """
    tool("yosys"), tool("dot")
    name = top or top_of(code)
    if name is None:
        raise DataError("the code has no module", hint="nothing to draw")
    script = (
        f"read_verilog -sv dut.sv; hierarchy -top {name}; proc; opt_clean; select -module {name};"
        " show -format dot -prefix net -viewer none -stretch"
    )
    box = Sandbox.best(Policy(wall_s=seconds, cpu_s=seconds, mem_mb=1024, address_space=False))
    done = box.run(
        [Step(["yosys", "-q", "-p", script]), Step(["dot", "-Tsvg", "-o", "net.svg", "net.dot"], only_if=0)],
        {"dut.sv": code}, ["net.svg"],
    )  # fmt: skip
    if not done.ok or "net.svg" not in done.artifacts:
        lines = (done.last.err + done.last.out).splitlines()
        reason = next((line for line in lines if "ERROR" in line), done.status)
        raise DataError(f"no schematic of {name}: {reason[:300]}")
    return done.artifacts["net.svg"].decode("utf-8", "replace")
