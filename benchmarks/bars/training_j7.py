"""Training on a CPU, LoRA and full, fp32, on sentence pairs: useful tokens a second against TRL and Unsloth."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.peers.compare import chosen, in_turns, judged, together, with_other_commands

LEAST = {"trl": 1.3}


def measure(setting: Setting) -> Measured:
    data_root()
    peers = chosen(setting, ["trl"] if setting.quick else ["trl", "unsloth"])
    lora = judged(in_turns(peers, "J7", setting), LEAST, {})
    full = judged(in_turns([name for name in peers if name != "unsloth"], "J7-full", setting), LEAST, {})
    ratios = [form.details["speed against"].get("trl") for form in (lora, full)]
    measured = [ratio for ratio in ratios if ratio is not None]
    return Measured(
        min(measured) if measured else None,
        together([lora.passed, full.passed]),
        baseline={"LoRA": lora.baseline, "full": full.baseline},
        details={"LoRA": lora.details, "full": full.details},
    )


BAR = Bar(
    id="training.J7",
    title="training on a CPU, 22M parameters, LoRA and full",
    unit="x TRL, useful tokens/s, the smaller of LoRA and full",
    target=">= 1.3 x TRL",
    needs="cpu",
    minutes=15,
    measure=measure,
    judge=with_other_commands,
)
