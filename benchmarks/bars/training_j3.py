"""Packed rows of mixed lengths, a 3B shape with LoRA: useful tokens a second against TRL padded and TRL's own packing.

TRL pads as many rows a step as fill our packed sequences, two at a time; its own packing puts other rows together
than ours. That packed rows are learnt from as padded ones are, the losses on the job's twin say.
"""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import chosen, in_turns, judged, with_other_commands
from benchmarks.peers.job import JOBS, rows

PADDED = "J3-padded"


def measure(setting: Setting) -> Measured:
    results = in_turns(chosen(setting, ["trl packing", "trl"]), "J3", setting, jobs={"trl": PADDED})
    found = judged(results, speed={"trl": 2.0, "trl packing": 1.1}, memory={})
    found.details["padding share of padded batches"] = round(padding_share(), 3)
    return found


def padding_share() -> float:
    """What is no token in TRL's padded batches."""
    job = JOBS[PADDED]
    lengths = [len(row) for row in rows(job)]
    groups = [lengths[start : start + job.micro] for start in range(0, len(lengths), job.micro)]
    return 1 - sum(lengths) / sum(max(group) * len(group) for group in groups)


BAR = Bar(
    id="training.J3",
    title="packed rows of mixed lengths, LoRA 3B shape, one GPU",
    unit="useful tokens/s",
    target=">= 2 x TRL padded, >= 1.1 x TRL with its own packing",
    needs="gpu",
    minutes=9,
    measure=measure,
    judge=with_other_commands,
)
