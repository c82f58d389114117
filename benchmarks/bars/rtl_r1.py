"""The references of VerilogEval pass the strict verdict: all completions, and all specifications but the broken one.

The quick form takes every twelfth problem and the three that need care. The baseline is the stock harness with one
engine; an empty module is the chance row.
"""

from __future__ import annotations

from collections import Counter

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.data import data_root

SPECIAL = ("Prob099", "Prob151", "Prob156")
EXPECTED = {"completion": Counter({".": 156}), "spec": Counter({".": 155, "I": 1})}


def measure(setting: Setting) -> Measured:
    """References that pass, over both tasks."""
    from apps.rtl import RtlHarness, load_data
    from apps.rtl.harness import reference_as_candidate
    from core.execution.tools import has

    for tool in ("iverilog", "verilator"):
        if not has(tool):
            raise Unavailable(f"{tool} is not installed (Debian package: {tool})")
    harness, stock = RtlHarness(cache=setting.work / "cache"), RtlHarness(mode="v2", cache=setting.work / "stock")
    letters, causes, stock_passes, chance, wrong = {}, {}, {}, 0, []
    for task, expected in EXPECTED.items():
        problems = load_data(data_root() / "rtl" / "verilog_eval_v2", "verilogeval", task=task)
        if setting.quick:
            problems = [p for i, p in enumerate(problems) if i % 12 == 0 or p.id.startswith(SPECIAL[:1])]
        verdicts = list(harness.verify_many((p, reference_as_candidate(p)) for p in problems))
        letters[task] = Counter(v.letter for v in verdicts)
        causes |= {f"{task} {p.id}": v.detail for p, v in zip(problems, verdicts) if not v.passed}
        stock_passes[task] = sum(v.passed for v in stock.verify_many((p, reference_as_candidate(p)) for p in problems))
        chance += sum(harness.verify(p, "module TopModule; endmodule").passed for p in problems[::10])
        invalid = sum(p.id.startswith("Prob099") for p in problems) if task == "spec" else 0
        if letters[task] != (Counter({".": len(problems) - invalid, "I": invalid}) if setting.quick else expected):
            wrong.append(task)
    return Measured(
        sum(found["."] for found in letters.values()),
        not wrong,
        baseline={f"stock rules, iverilog alone, {task}": count for task, count in stock_passes.items()},
        chance=f"{chance} empty modules pass",
        details={"letters": {k: dict(v) for k, v in letters.items()}, "causes": causes, "tools": harness.versions()},
    )


BAR = Bar(
    "rtl.R1",
    "VerilogEval references pass the strict verdict",
    "references that pass, of 312",
    "completion 156/156; specification 155/156 and one invalid problem",
    "cpu",
    4,
    measure,
)
