"""pass@k equals exact rational arithmetic for every n up to 60."""

from __future__ import annotations

from fractions import Fraction
from math import comb

from benchmarks.bar import Bar, Measured, Setting
from core.evaluation.passk import mean_pass_at_k, pass_at_k

TOLERANCE = 1e-12


def measure(setting: Setting) -> Measured:
    """Largest error over all (n, c, k); the baseline is the estimator 1 − (1 − c/n)^k, which is biased."""
    largest = biased = 0.0
    count = 0
    for n in range(1, 25 if setting.quick else 61):
        for c in range(n + 1):
            for k in range(1, n + 1):
                exact = float(1 - Fraction(comb(n - c, k), comb(n, k)))
                largest = max(largest, abs(pass_at_k(n, c, k) - exact))
                biased = max(biased, abs(1 - (1 - c / n) ** k - exact))
                count += 1
    example = mean_pass_at_k([(6, 3)], 1).value
    return Measured(
        largest,
        max(largest, abs(example - 0.5)) <= TOLERANCE,
        baseline=f"1 − (1 − c/n)^k is off by up to {biased:.3f}",
        details={"cases": count, "six samples, three right, pass@1": example},
    )


BAR = Bar("execution.X3", "pass@k is exact", "largest error", f"≤ {TOLERANCE:g}", "cpu", 0.2, measure)
