"""Searching allocations by the three rules needs fewer trials than random search and a Parzen estimator.

On worlds of recorded outcomes (`benchmarks/search_world.py`): 13,824 allocations, the optimum within the budget known
by trying all. A trial counts until the score is within 1 % of the optimum; a search that does not get there in 400
counts as 401.
"""

from __future__ import annotations

import statistics

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.search_world import optimum, world

RUN_BUDGET, TRIALS = 700.0, 400


def measure(setting: Setting) -> Measured:
    """Median trials of the rules, and of the baselines."""
    from core.inference.search import HillClimbAgent, RandomAgent, RuleAgent, TpeAgent, search

    makers = {
        "rules": lambda seed: RuleAgent(), "random": RandomAgent, "parzen": TpeAgent, "hill climbing": HillClimbAgent,
    }  # fmt: skip
    needed: dict[str, list[int]] = {name: [] for name in makers}
    for seed in range(8 if setting.quick else 50):
        environment = world(seed)
        goal = 0.99 * optimum(environment, RUN_BUDGET)
        for name, make in makers.items():
            tried = search(environment, make(seed), run_budget=RUN_BUDGET, trials=TRIALS).archive.tried
            needed[name].append(next((i for i, t in enumerate(tried, 1) if t.score >= goal), TRIALS + 1))
    median = {name: statistics.median(found) for name, found in needed.items()}
    return Measured(
        median["rules"],
        median["rules"] <= 0.5 * median["random"] and median["rules"] <= 0.8 * median["parzen"],
        baseline={name: value for name, value in median.items() if name != "rules"},
        details={"searches that never got there": {n: sum(x > TRIALS for x in v) for n, v in needed.items()},
                 "trials of the rules": needed["rules"]},
    )  # fmt: skip


BAR = Bar(
    "search.A1", "trials to 99 % of the best allocation", "median trials",
    "≤ half of random search, ≤ 0.8 of a Parzen estimator", "cpu", 4, measure,
)  # fmt: skip
