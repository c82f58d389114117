"""The search finds a kernel near the best setting of its knobs in ten rounds.

A scripted generator turns the knobs of a matrix product; every setting is compiled, checked and timed once, and twenty
searches of two candidates a round look for the fastest. On a GPU times are measured, elsewhere they are the model's.
The baseline draws as many settings at random.
"""

from __future__ import annotations

import random
import statistics
from typing import Any

from benchmarks import kernel_space, kernels
from benchmarks.bar import Bar, Measured, Setting, Unavailable

ROUNDS, SAMPLES, SEARCHES, SHARE = 10, 2, 20, 0.8


def measure(setting: Setting) -> Measured:
    """The smallest share of the best speed that a search reaches."""
    from apps.cuda.device import gpus
    from apps.cuda.harness import CudaHarness
    from apps.cuda.search import KnobGenerator, fastest, search_loop
    from apps.cuda.timing import TimingOptions
    from core.execution.tools import has

    if not has("g++"):
        raise Unavailable("g++ is not installed (Debian package: g++)")
    level, lacking = kernels.isolation()
    space = kernel_space.SMALL if setting.quick else kernel_space.SPACE
    task = kernel_space.problem(2048 if gpus() else 256)
    harness = CudaHarness(
        archs=() if setting.quick else ("sm_90",), trials=1, nearby=False, level=level, sanitize=False,
        small=1 << (13 if setting.quick else 15), timing=TimingOptions(seconds=0.15, baselines=()),
    )  # fmt: skip
    known = kernel_space.Remembered(harness, task, space)
    best = known.best.timing
    assert best is not None
    shares, chance, rounds = [], [], []
    texts = list(known.known)
    for seed in range(SEARCHES):
        loop = search_loop(
            KnobGenerator([kernel_space.FIRST], space, seed), known, samples=SAMPLES, rounds=ROUNDS, seed=seed
        )  # type: ignore[arg-type]
        events = [e for e in loop.run(task) if e.kind == "verified" and e.candidate is not None]
        found = fastest([e.candidate for e in events if e.candidate is not None])
        shares.append(share(found.verdict.artifacts["verdict"], best) if found else 0.0)
        near = [
            e.round for e in events if e.candidate and share(e.candidate.verdict.artifacts["verdict"], best) >= SHARE
        ]
        rounds.append(1 + min(near, default=ROUNDS))
        drawn = random.Random(seed).sample(texts, min(len(texts), ROUNDS * SAMPLES))
        chance.append(max(share(known.known[x], best) for x in drawn))
    right = [v for v in known.known.values() if v.passed]
    engine = harness.engine
    harness.close()
    return Measured(
        min(shares),
        min(shares) >= SHARE,
        baseline=f"as many random settings: {min(chance):.3f} at least, {statistics.median(chance):.3f} in the median",
        chance=f"any setting: {statistics.median(share(v, best) for v in known.known.values()):.3f} in the median",
        details={
            "settings": len(known.known), "right": len(right), "best ms": best.median,
            "median share": statistics.median(shares),
            "rounds to 80 %": statistics.median(rounds), "searches": SEARCHES, "times": "modelled" if best.modelled
            else "measured", "engine": engine, "isolation": level, "stricter levels lack": lacking,
        },
    )  # fmt: skip


def share(verdict: Any, best: Any) -> float:
    """Of the best speed; 0 for what is not right. Modelled times count without the cost of a launch, equal for all."""
    from apps.cuda.model import LIMITS

    if not verdict.passed or verdict.timing is None:
        return 0.0
    launch = LIMITS["sm_90"].launch_s * 1e3 if best.modelled else 0.0
    return (best.median - launch) / (verdict.timing.median - launch)


BAR = Bar(
    "cuda.C5", "feature search with a scripted generator", "share of the best speed",
    "≥ 0.8 in 10 rounds, every one of 20 searches", "cpu", 6, measure,
)  # fmt: skip
