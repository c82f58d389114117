"""QLoRA of an 8B shape (NF4, double quantization), with and without checkpointing, against Unsloth and TRL."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import in_turns, judged

SPEED, MEMORY = {"unsloth": 0.95}, {"unsloth": 1.05}


def measure(setting: Setting) -> Measured:
    more = ["--steps", "6"] if setting.quick else []
    plain = judged(in_turns(["graft", "unsloth", "trl"], "J2", setting.work, more=more), SPEED, MEMORY)
    recomputed = judged(in_turns(["graft", "unsloth"], "J2c", setting.work, more=more), SPEED, MEMORY)
    verdicts = {plain.passed, recomputed.passed}
    passed = False if False in verdicts else None if None in verdicts else True
    details = {"without checkpointing": plain.details, "with checkpointing": recomputed.details}
    return Measured(plain.value, passed, baseline=plain.baseline, details=details)


BAR = Bar(
    id="training.J2",
    title="QLoRA 8B shape, one GPU",
    unit="useful tokens/s",
    target=">= 0.95 x Unsloth at <= 1.05 x its memory, with and without checkpointing",
    needs="gpu",
    minutes=8,
    measure=measure,
)
