"""LoRA of an 8B shape with full activation checkpointing, against Unsloth with its own."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import chosen, in_turns, judged, with_other_commands


def measure(setting: Setting) -> Measured:
    results = in_turns(chosen(setting, ["unsloth"]), "J1c", setting)
    return judged(results, speed={"unsloth": 1.0}, memory={"unsloth": 1.05})


BAR = Bar(
    id="training.J1c",
    title="LoRA 8B shape with activation checkpointing, one GPU",
    unit="useful tokens/s",
    target=">= 1.0 x Unsloth at <= 1.05 x its memory, both with checkpointing",
    needs="gpu",
    minutes=9,
    measure=measure,
    judge=with_other_commands,
)
