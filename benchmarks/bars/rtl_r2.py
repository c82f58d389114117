"""The references of RTLLM pass under their stored engine, or are listed with the cause."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.data import data_root

FAILING = {"asyn_fifo"}


def measure(setting: Setting) -> Measured:
    """Designs whose reference passes. The quick form leaves out those that need the second engine."""
    from apps.rtl import RtlHarness, load_data
    from apps.rtl.harness import reference_as_candidate
    from core.execution.tools import has

    for tool in ("iverilog", "verilator"):
        if not has(tool):
            raise Unavailable(f"{tool} is not installed (Debian package: {tool})")
    designs = load_data(data_root() / "rtl" / "rtllm_v2", "rtllm")
    if setting.quick:
        designs = [d for d in designs if d.id not in FAILING | {"radix2_div", "clkgenerator"}]
    harness = RtlHarness(cache=setting.work / "cache")
    verdicts = list(harness.verify_many((d, reference_as_candidate(d)) for d in designs))
    stock = RtlHarness(mode="rtllm", cache=setting.work / "stock")
    renamed = sum(v.passed for v in stock.verify_many((d, reference_as_candidate(d)) for d in designs))
    fooled = sum(v.passed for v in stock.verify_many((d, _prints(d)) for d in designs))
    held = sum(v.passed for v in harness.verify_many((d, _prints(d)) for d in designs))
    failing = {d.id: v.meaning for d, v in zip(designs, verdicts) if not v.passed}
    return Measured(
        sum(v.passed for v in verdicts),
        set(failing) == (set() if setting.quick else FAILING) and held == 0,
        baseline=f"stock rule: {renamed} references pass, and so do {fooled} modules that only print 'Passed'",
        chance=f"{held} modules that only print pass the strict verdict",
        details={
            "designs": len(designs), "engines": dict(Counter(harness.facts(d).engine for d in designs)),
            "not passing": failing, "tools": harness.versions(),
        },
    )  # fmt: skip


def _prints(design: Any) -> str:
    """A module with the right ports that says "Passed" and leaves."""
    from apps.rtl.syntax import ports

    listed = ports(design.reference, design.reference_top) or []
    declared = ", ".join(f"{p.direction}put [{p.width - 1}:0] {p.name}" for p in listed)
    return f'module {design.top} ({declared}); initial begin $display("Passed"); $finish; end endmodule\n'


BAR = Bar(
    "rtl.R2", "RTLLM references pass the strict verdict", "references that pass",
    "all shared designs but asyn_fifo, which is listed with its cause", "cpu", 2, measure,
)  # fmt: skip
