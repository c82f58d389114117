"""LoRA of an 8B shape with full activation checkpointing, against Unsloth with its own."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import in_turns, judged


def measure(setting: Setting) -> Measured:
    more = ["--steps", "6"] if setting.quick else []
    results = in_turns(["graft", "unsloth"], "J1c", setting.work, more=more)
    return judged(results, speed={"unsloth": 1.0}, memory={"unsloth": 1.05})


BAR = Bar(
    id="training.J1c",
    title="LoRA 8B shape with activation checkpointing, one GPU",
    unit="useful tokens/s",
    target=">= 1.0 x Unsloth at <= 1.05 x its memory, both with checkpointing",
    needs="gpu",
    minutes=5,
    measure=measure,
)
