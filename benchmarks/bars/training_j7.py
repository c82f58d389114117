"""Training on a CPU, LoRA and full, fp32, on sentence pairs: useful tokens a second against TRL and Unsloth."""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.peers.compare import in_turns, judged

LEAST = {"trl": 1.3}


def measure(setting: Setting) -> Measured:
    data_root()
    repeats, more = (1, ["--steps", "6"]) if setting.quick else (3, [])
    peers = ["graft", "trl"] if setting.quick else ["graft", "trl", "unsloth"]
    lora = judged(in_turns(peers, "J7", setting.work, repeats, more), LEAST, {})
    full = judged(in_turns(["graft", "trl"], "J7-full", setting.work, repeats, more), LEAST, {})
    verdicts = {lora.passed, full.passed}
    passed = False if False in verdicts else None if None in verdicts else True
    ratios = [form.details["speed against"].get("trl") for form in (lora, full)]
    measured = [ratio for ratio in ratios if ratio is not None]
    return Measured(
        min(measured) if measured else None,
        passed,
        baseline={"LoRA": lora.baseline, "full": full.baseline},
        details={"LoRA": lora.details, "full": full.details},
    )


BAR = Bar(
    id="training.J7",
    title="training on a CPU, 22M parameters, LoRA and full",
    unit="x TRL, useful tokens/s, the smaller of LoRA and full",
    target=">= 1.3 x TRL",
    needs="cpu",
    minutes=8,
    measure=measure,
)
