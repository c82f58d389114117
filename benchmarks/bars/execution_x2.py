"""What the sandbox costs: a launch against a bare subprocess, a cached answer, a warm call."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from core.execution import ExecCache, Policy, Sandbox, Step

OVERHEAD_MS, HIT_MS, WARM_MS, CALLS_S = 30.0, 2.0, 2.0, 0.5


def measure(setting: Setting) -> Measured:
    """Median extra milliseconds of a launch in bubblewrap, interleaved with bare subprocesses."""
    probe = next(p for p in Sandbox.probe() if p.name == "bwrap")
    if not probe.available:
        raise Unavailable(probe.reason)
    box, rounds = Sandbox(Policy(), "bwrap"), 20 if setting.quick else 200
    step = [Step(["true"])]
    bare, boxed = [], []
    for _ in range(rounds):
        bare.append(_ms(lambda: subprocess.run(["true"], capture_output=True, check=True)))
        boxed.append(_ms(lambda: box.run(step)))
    cache = ExecCache(setting.work)
    cache.run(box, step)
    hits = [_ms(lambda: cache.run(box, step)) for _ in range(rounds)]
    with box.worker("def twice(x): return 2 * x") as worker:
        calls = [_ms(lambda: worker.call("twice", 1)) for _ in range(240)]
    others = {}
    for other in Sandbox.probe():
        if other.available and other.name != "bwrap":
            held = Sandbox(Policy(level="weak"), other.name)
            others[other.name] = round(statistics.median(_ms(lambda h=held: h.run(step)) for _ in range(20)), 2)
    overhead, hit, warm = (statistics.median(x) for x in ([a - b for a, b in zip(boxed, bare)], hits, calls))
    return Measured(
        overhead,
        overhead <= OVERHEAD_MS and hit <= HIT_MS and warm <= WARM_MS and sum(calls) / 1e3 <= CALLS_S,
        baseline=f"bare subprocess {statistics.median(bare):.2f} ms",
        details={
            "cached hit, ms": round(hit, 3), "warm call, ms": round(warm, 3),
            "240 warm calls, s": round(sum(calls) / 1e3, 3), "whole launch by backend, ms": others,
        },
    )  # fmt: skip


def _ms(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


BAR = Bar(
    "execution.X2",
    "cost of a sandboxed launch",
    "ms over a bare subprocess, median",
    f"≤ {OVERHEAD_MS:g} ms; cached hit ≤ {HIT_MS:g} ms; warm call ≤ {WARM_MS:g} ms; 240 calls ≤ {CALLS_S:g} s",
    "cpu",
    0.5,
    measure,
)
