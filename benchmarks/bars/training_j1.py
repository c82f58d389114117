"""LoRA of an 8B shape, full rows of 4,096 tokens, no checkpointing, against Unsloth and TRL with Liger-Kernel."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import chosen, in_turns, judged, with_other_commands


def measure(setting: Setting) -> Measured:
    results = in_turns(chosen(setting, ["unsloth"]), "J1", setting)
    return judged(results, speed={"unsloth": 1.0, "trl + liger-kernel": 1.05}, memory={"unsloth": 1.05})


BAR = Bar(
    id="training.J1",
    title="LoRA 8B shape, one GPU (TRL: --peers 'trl + liger-kernel')",
    unit="useful tokens/s",
    target=">= 1.0 x Unsloth at <= 1.05 x its memory, >= 1.05 x TRL + liger-kernel",
    needs="gpu",
    minutes=9,
    measure=measure,
    judge=with_other_commands,
)
