"""QLoRA of an 8B shape (NF4, double quantization) against Unsloth; with checkpointing it is `training.J2c`."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.peers.compare import chosen, in_turns, judged, with_other_commands


def measure(setting: Setting) -> Measured:
    results = in_turns(chosen(setting, ["unsloth"]), "J2", setting)
    return judged(results, speed={"unsloth": 0.95}, memory={"unsloth": 1.05})


BAR = Bar(
    id="training.J2",
    title="QLoRA 8B shape, one GPU (TRL beside it: --peers trl)",
    unit="useful tokens/s",
    target=">= 0.95 x Unsloth at <= 1.05 x its memory",
    needs="gpu",
    minutes=9,
    measure=measure,
    judge=with_other_commands,
)
