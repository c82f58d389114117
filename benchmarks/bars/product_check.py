"""`graft check` reads a recipe and the first rows of its data in two seconds, without weights."""

from __future__ import annotations

import statistics

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.process import run_timed

LIMIT = 2.0
RECIPE = "recipes/translation/quickstart.yaml"


def measure(setting: Setting) -> Measured:
    runs = [run_timed("-m", "recipes", "check", RECIPE) for _ in range(3 if setting.quick else 5)]
    median = statistics.median(seconds for seconds, _ in runs)
    said = runs[0][1].strip().splitlines()
    return Measured(median, median <= LIMIT, details={"times": [round(t, 3) for t, _ in runs], "says": said[-1:]})


BAR = Bar("product.check", "time of graft check on the quickstart recipe", "s", f"≤ {LIMIT:g} s", "cpu", 0.2, measure)
