"""How quick strict verdicts are: 156 of them, cold and from the cache, on two cores.

The references' facts are made before, as they are made once for a benchmark and not once for a sample. The baseline
is Icarus alone on the same files, without sandbox and policy.
"""

from __future__ import annotations

import subprocess
import time

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.data import data_root

COLD_S, CACHED_S = 20.0, 1.0


def measure(setting: Setting) -> Measured:
    """Seconds of 156 cold verdicts; the quick form judges 26."""
    from apps.rtl import RtlHarness, load_data
    from apps.rtl.harness import reference_as_candidate
    from core.execution.tools import has

    if not has("iverilog"):
        raise Unavailable("iverilog is not installed (Debian package: iverilog)")
    problems = load_data(data_root() / "rtl" / "verilog_eval_v2", "verilogeval", task="spec")
    problems = problems[:: 6 if setting.quick else 1]
    # another text than the reference's own, so that no run of the facts answers for it
    jobs = [(p, reference_as_candidate(p) + "// as a candidate\n") for p in problems]
    warm = RtlHarness(cache=setting.work / "cache", workers=2, engine="iverilog")
    for problem in problems:
        warm.facts(problem)
    spent = []
    for _ in range(2):
        harness = RtlHarness(cache=setting.work / "cache", workers=2, engine="iverilog")
        start = time.perf_counter()
        passed = sum(v.passed for v in harness.verify_many(jobs))
        spent.append(time.perf_counter() - start)
    bare = _bare(setting, jobs)
    share = len(problems) / 156
    return Measured(
        spent[0],
        spent[0] <= COLD_S * share and spent[1] <= CACHED_S * share,
        baseline=f"Icarus alone, one after the other: {bare:.1f} s",
        details={"verdicts": len(jobs), "passed": passed, "from the cache, s": round(spent[1], 3)},
    )


def _bare(setting: Setting, jobs: list) -> float:
    start = time.perf_counter()
    for problem, code in jobs:
        for name, text in (("dut.sv", code), ("tb.sv", problem.testbench), ("ref.sv", problem.reference)):
            (setting.work / name).write_text(text)
        command = ["iverilog", "-g2012", "-s", "tb", "-o", "sim.vvp", "dut.sv", "tb.sv", "ref.sv"]
        for step in (command, ["vvp", "-n", "sim.vvp"]):
            subprocess.run(step, cwd=setting.work, capture_output=True, timeout=60, check=False)
    return time.perf_counter() - start


BAR = Bar(
    "rtl.R5", "strict verdicts a second", "s for 156 verdicts, cold, two cores",
    f"≤ {COLD_S:g} s cold, ≤ {CACHED_S:g} s cached", "cpu", 1.5, measure,
)  # fmt: skip
