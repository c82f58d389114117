"""What backtracking is worth where services fail: solved tasks of depth-first search and of ReAct, equal budgets.

The baseline is the better of ReAct as it is, one chain, and of ReAct begun anew until the budget of model calls is
spent. The services of a stage fail for half of the tasks, and the agent gives up after every second error; the details
hold other rates too, and there restarts win where services rarely fail.
"""

from __future__ import annotations

from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.tool_world import make, solve

FAILING, IMPATIENCE, BUDGET, TASKS, TARGET = 0.5, 0.5, 30, 400, 15.0
STRATEGIES = ("dfsdt", "react", "react_n")


def measure(setting: Setting) -> Measured:
    main = rates(FAILING, IMPATIENCE, 100 if setting.quick else TASKS)
    best = max(main["react"], main["react_n"])
    gain = main["dfsdt"] - best
    details: dict[str, Any] = {"solved, %": main, "budget, model calls": BUDGET}
    if not setting.quick:
        details["other worlds"] = {
            f"{failing:.0%} failing, {impatience:.0%} give up": rates(failing, impatience, 150)
            for failing in (0.2, 0.35, 0.5)
            for impatience in (0.0, 0.5)
            if (failing, impatience) != (FAILING, IMPATIENCE)
        }
    return Measured(round(gain, 1), gain >= TARGET, f"ReAct {main['react']:.1f}, with restarts {main['react_n']:.1f}",
                    "no gain: 0", details)  # fmt: skip


def rates(failing: float, impatience: float, count: int) -> dict[str, float]:
    """Percent of solvable tasks that each strategy solves within the budget."""
    tasks = [make(number, failing) for number in range(count)]
    return {s: round(100 * sum(solve(t, s, BUDGET, impatience)[0] for t in tasks) / count, 1) for s in STRATEGIES}


BAR = Bar(
    "tool_use.U5",
    "services that fail at random: solved by depth-first search, beyond the better ReAct, at equal model calls",
    "points",
    f"≥ {TARGET:g}",
    "cpu",
    2,
    measure,
)
