"""The depth-first search over calls against thirty runs worked out by hand, and its two reductions.

A run counts when its visits, its number of model calls, its end and its answer are those of the fixture; with width 1
it must make exactly what ReAct makes.
"""

from __future__ import annotations

import dataclasses

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.tool_scenarios import SCENARIOS, run


def measure(setting: Setting) -> Measured:
    wrong, chains, apart = [], 0, []
    for scenario in SCENARIOS:
        visits, result = run(scenario)
        told = result.text if scenario.finish in ("answer", "gave_up") else str(scenario.number)
        found = (visits, result.meta["model_calls"], result.meta["finish"], told)
        expected = scenario.visits.split()
        if found != (expected, len(expected), scenario.finish, str(scenario.number)):
            wrong.append({"scenario": scenario.name, "found": found})
        if "climb" in scenario.options:
            continue
        options = {k: v for k, v in scenario.options.items() if k not in ("width", "answers")}
        one = run(dataclasses.replace(scenario, options={**options, "width": 1}))[1]
        chain = run(dataclasses.replace(scenario, options=options), "react")[1]
        chains += 1
        if one.meta["trace"]["tree"] != chain.meta["trace"]["tree"] or one.text != chain.text:
            apart.append(scenario.name)
    right = len(SCENARIOS) - len(wrong)
    details = {"wrong": wrong, "width 1 against ReAct": f"{chains - len(apart)} of {chains} equal", "apart": apart}
    equal = sum(run(s, "react")[0] == s.visits.split() for s in SCENARIOS)
    return Measured(right, not wrong and not apart, f"ReAct makes the visits of {equal}", 0, details)


BAR = Bar(
    "tool_use.U4",
    "depth-first search: scripted runs with the visits that its rules prescribe",
    f"of {len(SCENARIOS)} runs",
    f"{len(SCENARIOS)}, and width 1 equal to ReAct",
    "cpu",
    0.2,
    measure,
)
