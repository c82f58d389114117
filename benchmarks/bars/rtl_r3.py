"""No wrong design is accepted: the list of cheats, and mutants of VerilogEval's references.

A mutant that passes is compared with its reference by yosys; one that is not proved equal is listed. The quick form
takes the cheats and 20 mutants.
"""

from __future__ import annotations

from benchmarks import cheats
from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.data import data_root


def measure(setting: Setting) -> Measured:
    """Cheats accepted; the baseline is how many of them the stock rules accept."""
    from apps.rtl import RtlHarness, load_data
    from apps.rtl.engines import Limits
    from apps.rtl.mutate import check_testbenches
    from core.execution.tools import has

    for tool in ("iverilog", "yosys"):
        if not has(tool):
            raise Unavailable(f"{tool} is not installed (Debian package: {tool})")
    problem, limits = cheats.problem(), Limits(simulate_s=3)
    harness, stock = RtlHarness(limits=limits), RtlHarness(mode="v2", limits=limits)
    accepted = [name for name, code in cheats.CHEATS.items() if harness.verify(problem, code).passed]
    fooled = [name for name, code in cheats.CHEATS.items() if stock.verify(problem, code).passed]
    refused = [name for name, code in cheats.HONEST.items() if not harness.verify(problem, code).passed]
    problems = load_data(data_root() / "rtl" / "verilog_eval_v2", "verilogeval", task="spec")
    problems = [p for p in problems if not p.id.startswith(("Prob144", "Prob151", "Prob156"))]
    if setting.quick:
        problems = problems[::15]
    judge = RtlHarness(engine="iverilog", cache=setting.work / "cache")
    report = check_testbenches(problems, judge, each=2)
    listed = [
        f"{s.problem} line {s.mutant.line}: {s.mutant.kind} {s.mutant.change} ({s.proof})" for s in report.unexplained
    ]
    return Measured(
        len(accepted),
        not accepted and not refused and sum(report.counts.values()) > 0,
        baseline=f"the stock rules accept {len(fooled)} of {len(cheats.CHEATS)}: {fooled}",
        details={
            "cheats": len(cheats.CHEATS), "honest modules refused": refused, "mutants": dict(report.counts),
            "survivors proved equal": len(report.survivors) - len(report.unexplained), "survivors listed": listed,
        },
    )  # fmt: skip


BAR = Bar(
    "rtl.R3",
    "wrong designs accepted",
    "cheats accepted",
    "0; every surviving mutant proved equal or listed",
    "cpu",
    5,
    measure,
)
