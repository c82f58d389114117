"""LoRA of an 8B shape, full rows of 4,096 tokens, no checkpointing, against Unsloth and TRL with Liger-Kernel."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import in_turns, judged


def measure(setting: Setting) -> Measured:
    more = ["--steps", "6"] if setting.quick else []
    results = in_turns(["graft", "unsloth", "trl + liger-kernel"], "J1", setting.work, more=more)
    return judged(results, speed={"unsloth": 1.0, "trl + liger-kernel": 1.05}, memory={"unsloth": 1.05})


BAR = Bar(
    id="training.J1",
    title="LoRA 8B shape, one GPU",
    unit="useful tokens/s",
    target=">= 1.0 x Unsloth at <= 1.05 x its memory, >= 1.05 x TRL + liger-kernel",
    needs="gpu",
    minutes=5,
    measure=measure,
)
