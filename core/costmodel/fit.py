"""Look for the fastest way to compute a step that fits into a device's memory.

Nothing here changes what is learnt: the global batch stays, only its cut into passes, recomputation and, in what is
proposed to the user, the number format of the frozen base are varied. When nothing fits, the cheapest changes that
would are named, each with its memory and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from core.costmodel.hardware import GIB, Device
from core.costmodel.memory import Memory, predict_memory
from core.costmodel.time import Step, predict_time
from core.costmodel.workload import Workload
from core.errors import BudgetExceeded

MOST_TOKENS = 32768


@dataclass(frozen=True)
class Choice:
    """A way to compute a step, what it needs and how long it takes."""

    work: Workload
    memory: Memory
    step: Step

    @property
    def checkpointing(self) -> str:
        return self.work.checkpointing

    def describe(self) -> str:
        return (
            f"micro-batch {self.work.micro} × {self.work.accumulation}"
            f"{'' if self.checkpointing == 'none' else f' with {self.checkpointing} activation checkpointing'}:"
            f" {self.memory.reserved / GIB:.1f} GiB, {self.step.seconds:.2f} s a step"
        )


class DoesNotFit(BudgetExceeded):
    """No cut of the batch fits. `least` is the choice that needs least."""

    least: Choice


def evaluate(work: Workload, device: Device) -> Choice:
    return Choice(work, predict_memory(work, gpu=device.is_gpu), predict_time(work, device))


def choose(
    work: Workload,
    device: Device,
    sequences: int,
    *,
    micro: int | Literal["auto"] = "auto",
    checkpoint: str = "auto",
    available: float | None = None,
) -> Choice:
    """The fastest cut of `sequences` a step and process that fits.

    Args:
        work: of the run; its micro, accumulation and checkpointing are replaced.
        checkpoint: none, selective, full, or auto for any of them.
        available: bytes that may be used, by default all of the device's.

    Raises:
        DoesNotFit: nothing fits as the recipe is; the hint names the three cheapest changes that do.
    """
    limit = device.memory if available is None else available
    candidates = [evaluate(cut, device) for cut in _cuts(work, sequences, micro, checkpoint)]
    fitting = [choice for choice in candidates if choice.memory.reserved <= limit]
    if fitting:
        return min(fitting, key=lambda choice: (choice.step.seconds, choice.memory.total))
    least = min(candidates, key=lambda choice: choice.memory.reserved)
    error = DoesNotFit(
        f"the run needs {least.memory.reserved / GIB:.1f} GiB and {device.name} has {limit / GIB:.1f} GiB"
        f" (largest: {_largest(least.memory)})",
        where="model, train.batch, data.max_length",
        hint=_hint(changes(work, device, sequences, limit)),
    )
    error.least = least
    raise error


def _cuts(work: Workload, sequences: int, micro: Any, checkpoint: str) -> Iterator[Workload]:
    sizes = {min(micro, sequences)} if isinstance(micro, int) else set()
    if not sizes:
        most = max(1, min(sequences, MOST_TOKENS // work.length))
        sizes = {-(-sequences // -(-sequences // size)) for size in range(1, most + 1)}
    for size in sorted(sizes):
        for recompute in ("none", "selective", "full") if checkpoint == "auto" else (checkpoint,):
            yield work.with_(micro=size, accumulation=-(-sequences // size), checkpointing=recompute)


def changes(work: Workload, device: Device, sequences: int, limit: float) -> list[tuple[str, Choice]]:
    """What the user could change so that the run fits, the fastest first, at most three."""
    options: list[tuple[str, Workload]] = []
    if work.rank and work.quantization == "none":
        options.append(("model.quantization=nf4", work.with_(quantization="nf4")))
    if not work.rank:
        lora = work.with_(rank=16, targets=tuple(work.shape.linears), stored=min(work.stored, 2))
        options.append(("model.adapters='[{kind: lora, r: 16}]' model.dtype=bf16", lora))
        options.append(
            ("model.adapters='[{kind: lora, r: 16}]' model.quantization=nf4", lora.with_(quantization="nf4"))
        )
    options += [(f"data.max_length={n}", work.with_(length=n)) for n in _shorter(work.length)]
    found = [("train.batch.micro=1 backend.activation_checkpoint=full", work), *options]
    fitting = []
    for name, changed in found:
        choices = [evaluate(cut, device) for cut in _cuts(changed, sequences, "auto", "auto")]
        best = min((c for c in choices if c.memory.reserved <= limit), key=lambda c: c.step.seconds, default=None)
        if best is not None:
            fitting.append((name, best))
    return sorted(fitting, key=lambda pair: pair[1].step.seconds / pair[1].work.length)[:3]


def _shorter(length: int) -> list[int]:
    return [n for n in (length // 2, length // 4, length // 8) if n >= 128]


def _largest(memory: Memory) -> str:
    ranked = sorted(memory.by_category().items(), key=lambda pair: -pair[1])[:3]
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in ranked)


def _hint(found: list[tuple[str, Choice]]) -> str:
    if not found:
        return "no change of batch, length or number format makes this model fit; take a smaller one or another device"
    return "these fit: " + "; ".join(f"{name} ({choice.describe()})" for name, choice in found)
