"""`graft --help` answers at once: nothing heavy is imported before it is needed."""

from __future__ import annotations

import statistics

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.process import run_timed

LIMIT = 0.5


def measure(setting: Setting) -> Measured:
    times = [run_timed("-m", "recipes", "--help")[0] for _ in range(3 if setting.quick else 5)]
    median = statistics.median(times)
    return Measured(median, median <= LIMIT, details={"times": [round(t, 3) for t in times]})


BAR = Bar("product.help", "time of graft --help, median of five", "s", f"≤ {LIMIT} s", "cpu", 0.1, measure)
