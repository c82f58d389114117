"""A recipe's plan for one device: sizes, memory by category, seconds a step, or why it cannot run and what would.

It takes what the recipe says and the model's config.json; how long rows really are is known only from the data, so
sequences are taken to be as long as the recipe allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config.load import ResolvedStage
from core.config.schema import AdapterConfig
from core.costmodel.fit import Choice, DoesNotFit, choose
from core.costmodel.hardware import GIB, Device
from core.costmodel.workload import Workload, shape_of
from core.errors import ConfigError

CPU_TOKENS = 4096
"""Tokens of one pass on a CPU, where more is no faster."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs. `refusal` says why it does not fit; `choice` is then the least that it would need."""

    stage: str
    method: str
    choice: Choice
    refusal: str | None = None

    def to_dict(self) -> dict[str, Any]:
        work, memory, step = self.choice.work, self.choice.memory, self.choice.step
        return {
            "stage": self.stage,
            "method": self.method,
            "parameters": work.shape.parameters + work.adapter_parameters,
            "trainable": work.trainable,
            "micro": work.micro,
            "accumulation": work.accumulation,
            "length": work.length,
            "activation_checkpoint": self.choice.checkpointing,
            "peak_gib": round(memory.total / GIB, 2),
            "needed_gib": round(memory.reserved / GIB, 2),
            "by_category_gib": {name: round(size / GIB, 3) for name, size in memory.by_category().items()},
            "peak_at": memory.peak,
            "seconds_a_step": round(step.seconds, 4),
            "tokens_a_second": round(work.accumulation * work.tokens / step.seconds),
            "fits": self.refusal is None,
            **({"refused": self.refusal} if self.refusal else {}),
        }


def plan_stages(stages: Sequence[ResolvedStage], device: Device, processes: int = 1) -> list[StagePlan]:
    """The plan of every stage on `processes` devices of one kind.

    Raises:
        UnsupportedModelError: a model or an adapter that is not predicted.
    """
    return [_plan(stage, device, processes) for stage in stages]


def _beside_blocks(adapter: AdapterConfig) -> bool:
    """Whether an adapter names parts outside the blocks, which are not counted here."""
    targets = [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets
    return bool(adapter.modules_to_save) or any("head" in name or "embed" in name for name in targets)


def _plan(stage: ResolvedStage, device: Device, processes: int) -> StagePlan:
    recipe = stage.recipe
    kind = "cuda" if device.is_gpu else "cpu"
    work = Workload.from_recipe(recipe, shape_of(recipe), device=kind, micro=1)
    batch = recipe.train.batch
    sequences = max(1, round(batch.size / (work.length if batch.unit == "tokens" else 1) / processes))
    checkpoint: Any = recipe.backend.activation_checkpoint
    if not work.trainable and not any(_beside_blocks(adapter) for adapter in recipe.model.adapters):
        maps = ", ".join(work.shape.linears)
        raise ConfigError("targets name no linear map of the model", where="model.adapters", hint=f"it has {maps}")
    micro = max(1, CPU_TOKENS // work.length) if kind == "cpu" and batch.micro == "auto" else batch.micro
    try:
        return StagePlan(stage.name, stage.method, choose(work, device, sequences, micro=micro, checkpoint=checkpoint))
    except DoesNotFit as error:
        return StagePlan(stage.name, stage.method, error.least, str(error))
