"""What the recipe leaves open about time and memory, decided for the device at hand before weights are loaded.

The cost model chooses micro-batch and activation checkpointing where they are "auto", and refuses a run that cannot
fit. A model that it does not know keeps the plain rule of `step_sizes`. A resumed stage keeps the sizes it began
with, so that free memory cannot change its arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.config.load import ResolvedStage
from core.costmodel.fit import choose
from core.costmodel.hardware import DEVICES, Device, known_as, this_cpu
from core.costmodel.workload import Workload, shape_of
from core.distributed.launch import world_size
from core.errors import CheckpointError, ConfigError, UnsupportedModelError

SIZES = ("micro", "accumulation", "steps", "sequences_a_step")


def this_device(device: str) -> Device:
    """The device that the run uses, its memory as the driver tells it."""
    import dataclasses

    import torch

    if device == "cpu":
        return this_cpu()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = DEVICES.get(known_as(properties.name) or "", DEVICES["a100-80"])
    return dataclasses.replace(known, name=properties.name, memory=float(properties.total_memory))


def available(device: str) -> float | None:
    """Bytes that this process could use: what is free and what it already holds. None: the device's whole memory.

    A process that was given a share of its device (`torch.cuda.set_per_process_memory_fraction`) stays within it.
    """
    import torch

    if device == "cpu":
        return None
    free, total = torch.cuda.mem_get_info()
    return float(min(free + torch.cuda.memory_reserved(), torch.cuda.get_per_process_memory_fraction() * total))


def fit(stage: ResolvedStage, device: str, sizes: dict[str, int], *, decide: bool = True) -> dict[str, Any]:
    """`sizes` of a step with micro-batch and accumulation that fit, and the recipe's checkpointing decided.

    Args:
        sizes: as `step_sizes` gives them; the sequences of a step stay.
        decide: write what was chosen into the stage's recipe.

    Raises:
        BudgetExceeded: the run does not fit; the message says what would.
    """
    recipe = stage.recipe
    per_process = sizes["micro"] * sizes["accumulation"]
    try:
        work = Workload.from_recipe(recipe, shape_of(recipe), device=device, micro=1)
    except (UnsupportedModelError, CheckpointError) as error:
        return {**sizes, "predicted": f"not predicted: {error.what}"}
    micro: Any = recipe.train.batch.micro
    if device == "cpu":
        micro = sizes["micro"]
    checkpoint: Any = recipe.backend.activation_checkpoint
    choice = choose(
        work, this_device(device), per_process, micro=micro, checkpoint=checkpoint, available=available(device)
    )
    if decide:
        recipe.backend.activation_checkpoint = choice.checkpointing  # type: ignore[assignment]
    processes = sizes["sequences_a_step"] // per_process
    accumulation = -(-per_process // choice.work.micro)
    return {
        **sizes,
        "micro": -(-per_process // accumulation),
        "accumulation": accumulation,
        "sequences_a_step": -(-per_process // accumulation) * accumulation * processes,
        "activation_checkpoint": choice.checkpointing,
        "predicted_peak_gib": round(choice.memory.total / 2**30, 2),
        "predicted_seconds_a_step": round(choice.step.seconds, 4),
    }


def refuse_what_cannot_fit(stages: list[ResolvedStage], device: str) -> None:
    """Raise `BudgetExceeded` for a stage that would not fit with one sequence a pass, before anything is loaded."""
    for stage in stages:
        fit(stage, device, {"micro": 1, "accumulation": 1, "sequences_a_step": 1}, decide=False)


def refuse_beyond_context(model: Any, dataset: Any) -> str | None:
    """What to say about documents that are longer than the model's context; None where there are none.

    Raises:
        ConfigError: the model learnt a vector for each place and has none beyond its context.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    context = getattr(config, "max_position_embeddings", None)
    longest = max((len(row.input_ids) for row in getattr(dataset, "rows", ()) if hasattr(row, "input_ids")), default=0)
    if not context or longest <= context:
        return None
    what = f"rows have up to {longest} tokens, and the model's context is {context}"
    if not (getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)):
        raise ConfigError(what, where="data.max_length", hint=f"set it to at most {context}")
    return f"{what}: what lies beyond is new to it"


def begun_with(folder: Path, stage: ResolvedStage, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a stage to be resumed began with; `sizes` when it never began.

    The sequences of a step stay when the number of processes has changed: accumulation makes up for it.
    """
    if not (folder / "plan.json").is_file():
        return sizes
    begun = read_json(folder / "plan.json")
    if begun.get("activation_checkpoint"):
        stage.recipe.backend.activation_checkpoint = begun["activation_checkpoint"]
    kept = {name: begun[name] for name in SIZES if name in begun}
    if {"micro", "sequences_a_step"} <= kept.keys():
        kept["accumulation"] = -(-kept["sequences_a_step"] // (kept["micro"] * world_size()))
    return {**sizes, **kept}
