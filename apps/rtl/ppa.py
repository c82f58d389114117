"""What a design costs, by yosys with generic gates: cells, flip-flops, and the longest path in gates.

The figures compare designs with each other, best as ratios to a reference; they are no prediction for a cell library.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from apps.rtl.source import top_of
from core.errors import DataError
from core.execution import ExecCache, Policy, Sandbox, Step, tool


@dataclass(frozen=True)
class Cost:
    """Gates after `abc -g cmos2`, flip-flops, and the longest path between registers or ports, in gates."""

    cells: int
    flops: int
    depth: int
    by_kind: dict[str, int]

    def over(self, other: Cost) -> dict[str, float]:
        """Ratios to another design; a figure that is 0 there has none."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in ("cells", "flops", "depth")}
        return {name: mine / theirs for name, (mine, theirs) in pairs.items() if theirs}


def cost(code: str, top: str | None = None, *, seconds: float = 60, cache: ExecCache | None = None) -> Cost:
    """Synthesise `code`.

    Raises:
        ToolMissing: yosys is not installed. DataError: it cannot be synthesised; the message is yosys's.
    """
    tool("yosys")
    name = top or top_of(code)
    if name is None:
        raise DataError("the code has no module", hint="nothing to synthesise")
    script = (
        f"read_verilog -sv dut.sv; synth -flatten -top {name}; abc -g cmos2; opt_clean; tee -o stat.json stat -json;"
        " tee -o ltp.txt ltp -noff"
    )
    box = Sandbox.best(Policy(wall_s=seconds, cpu_s=seconds + 5, mem_mb=1536))
    steps, files, wanted = [Step(["yosys", "-q", "-p", script])], {"dut.sv": code}, ("stat.json", "ltp.txt")
    run = cache.run(box, steps, files, wanted) if cache is not None else box.run(steps, files, wanted)
    if not run.ok:
        line = next((s for s in (run.last.err + run.last.out).splitlines() if "ERROR" in s), run.status)
        raise DataError(f"yosys cannot synthesise {name}: {line}")
    text = run.artifacts["stat.json"].decode()
    kinds = json.loads(text[text.index("{") :])["design"]["num_cells_by_type"]
    flops = sum(count for kind, count in kinds.items() if "DFF" in kind or "DLATCH" in kind)
    match = re.search(r"\(length=(\d+)\)", run.artifacts["ltp.txt"].decode())
    return Cost(sum(kinds.values()) - flops, flops, int(match[1]) if match else 0, kinds)
