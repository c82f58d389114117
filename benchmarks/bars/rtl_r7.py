"""The bit-weight model and its units: the number of partial products, equality with numpy, and the depth of the loop.

The published averages are for int8 operands from N(0, s) in vectors of 128. Each generated unit is simulated with
10,000 operand pairs. The depth is that of the unit without the final addition, which units share outside the loop.
"""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting, Unavailable

PUBLISHED = {10: 1.75, 20: 2.10, 30: 2.32, 40: 2.48, 50: 2.60}
TOLERANCE = 0.03


def measure(setting: Setting) -> Measured:
    """Largest difference from the published averages."""
    from apps.rtl import RtlHarness
    from apps.rtl.accel import array
    from apps.rtl.accel.encode import average_products_exact
    from apps.rtl.accel.mac import KINDS, MacConfig, example, verilog
    from apps.rtl.ppa import cost
    from core.execution.tools import has

    for tool in ("iverilog", "yosys"):
        if not has(tool):
            raise Unavailable(f"{tool} is not installed (Debian package: {tool})")
    ours = {s: average_products_exact(s) for s in PUBLISHED}
    booth = {s: average_products_exact(s, "booth") for s in PUBLISHED}
    largest = max(abs(ours[s] - PUBLISHED[s]) for s in PUBLISHED)
    harness, wrong, depth = RtlHarness(), [], {}
    for kind in KINDS:
        task = example(MacConfig(kind), vectors=40 if setting.quick else 625, size=16)
        verdict = harness.verify(task, task.reference)
        if not verdict.passed:
            wrong.append(f"{kind}: {verdict.meaning}")
        found = cost(verilog(MacConfig(kind, final=False)))
        depth[kind] = {"depth": found.depth, "gates": found.cells, "flip-flops": found.flops}
    for kind in ("opt2", "opt4"):
        row = array.RowConfig(kind)
        task = array.example(
            row, vectors=20 if setting.quick else -(-625 // (1 if kind == "opt2" else row.width)), size=16
        )
        verdict = harness.verify(task, task.reference)
        if not verdict.passed:
            wrong.append(f"{kind}: {verdict.meaning}")
    return Measured(
        largest,
        largest <= TOLERANCE and not wrong and depth["opt1"]["depth"] < depth["plain"]["depth"],
        baseline=f"plain Booth is off by up to {max(abs(booth[s] - PUBLISHED[s]) for s in PUBLISHED):.2f}",
        chance="digits of plain binary: 4 of 8 bits on average",
        details={
            "average partial products": {s: round(x, 3) for s, x in ours.items()}, "published": PUBLISHED,
            "units that differ from numpy": wrong, "units": depth,
        },
    )  # fmt: skip


BAR = Bar(
    "rtl.R7", "bit-weight transformations", "largest difference of averages",
    f"≤ {TOLERANCE}; units equal numpy on 10,000 pairs; OPT1 less deep than the plain unit", "cpu", 0.5, measure,
)  # fmt: skip
