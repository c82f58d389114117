"""Packed rows of mixed lengths, LoRA of a 3B shape: useful tokens a second against TRL padded and TRL's own packing."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.peers.compare import in_turns, judged, run_peer
from benchmarks.peers.job import JOBS, rows


def measure(setting: Setting) -> Measured:
    more = ["--steps", "6"] if setting.quick else []
    found = judged(in_turns(["graft", "trl packing"], "J3", setting.work, more=more), {"trl packing": 1.1}, {})
    # as many rows a step as fill the packed sequences, eight at a time: other batches, so losses are not compared
    try:
        padded = run_peer("trl", "J3-padded", setting.work, *more)
    except Unavailable as reason:
        padded = {"unavailable": str(reason)}
        found.passed = found.passed and None
    job = JOBS["J3-padded"]
    lengths = [len(row) for row in rows(job)]
    groups = [lengths[start : start + job.micro] for start in range(0, len(lengths), job.micro)]
    found.details["padding share of padded batches"] = round(1 - sum(lengths) / sum(max(g) * len(g) for g in groups), 3)
    found.details["runs"]["trl"] = padded
    found.baseline["trl"] = padded.get("tokens_per_s", padded.get("unavailable"))
    if "tokens_per_s" in padded:
        ratio = found.value / padded["tokens_per_s"]
        found.details["speed against"]["trl"] = round(ratio, 3)
        found.passed = False if ratio < 2 else found.passed
    return found


BAR = Bar(
    id="training.J3",
    title="packed rows of mixed lengths, LoRA 3B shape, one GPU",
    unit="useful tokens/s",
    target=">= 2 x TRL padded, >= 1.1 x TRL with its own packing",
    needs="gpu",
    minutes=4,
    measure=measure,
)
