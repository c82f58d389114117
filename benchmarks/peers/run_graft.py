"""One job with this repository's trainer: `python -m benchmarks.peers.run_graft --job J1 [--set KEY=VALUE]`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.peers.job import JOBS, PROJECTIONS, Clock, Job, model_folder, place, report, rows, same_start


def recipe_of(job: Job, folder: Path, overrides: list[str]) -> Any:
    """The job as a recipe; what it does not say is our default."""
    from core.config.load import apply_override, build, parse_yaml
    from core.config.schema import Recipe

    raw: dict[str, Any] = {
        "model": {
            "path": str(folder),
            "dtype": "fp32" if job.fp32 else "bf16",
            "quantization": "nf4" if job.four_bit else "none",
        },
        "data": {"max_length": job.length, "packing": job.mixed},
        "train": {"max_steps": job.steps, "lr": job.lr, "schedule": "constant", "warmup": 0},
        "backend": {"activation_checkpoint": "full" if job.checkpoint else "none"},
        "checkpoint": {"every": 10**9},
    }
    if job.rank:
        raw["model"]["adapters"] = [{"kind": "lora", "r": job.rank, "alpha": 2 * job.rank, "targets": PROJECTIONS}]
    _, places = parse_yaml("version: 1")
    for override in overrides:
        apply_override(raw, places, override)
    return build(Recipe, raw, places)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True, choices=list(JOBS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--profile", type=Path, default=None)
    given = parser.parse_args()
    job = JOBS[given.job]
    job = job if given.steps is None else dataclasses.replace(job, steps=given.steps)
    import torch
    from transformers.trainer_callback import PrinterCallback

    from core.data.collate import Collator
    from core.data.dataset import EncodedDataset
    from core.data.encode import Encoded
    from core.quantization.load import load_base
    from core.training.arguments import training_arguments
    from core.training.build import add_adapters
    from core.training.trainer import CountingCollator, SupervisedTrainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = recipe_of(job, model_folder(job.shape, place()), given.set)
    model = load_base(recipe.model, None, device=device)
    model = same_start(add_adapters(model, recipe.model.adapters))
    data = [Encoded(ids, list(ids)) for ids in rows(job)]
    tokens = [sum(len(r.input_ids) for r in part) for part in _steps(data, job)]
    micro, accumulation = job.micro, job.accumulation
    sizes = {"micro": micro, "accumulation": accumulation, "steps": job.steps}
    items: Any = EncodedDataset(data)
    longest: int | None = job.length
    if job.mixed and not job.walks:
        items, tokens = _packed(data, job)
    elif job.mixed or job.text:
        items, sizes, longest = _packed_by_batch(data, job), {**sizes, "micro": 1}, None
    clock = Clock()

    class InOrder(SupervisedTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    trainer = InOrder(
        model=model,
        args=training_arguments(recipe, sizes, place() / "out", device),
        train_dataset=items,
        data_collator=CountingCollator(Collator(3, max_length=longest)),
        callbacks=[clock.callback()],
        train_config=recipe.train,
        backend=recipe.backend,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.args.logging_steps = 1
    if given.profile:
        _profiled(trainer, given.profile)
    trainer.train()
    report("graft", job, clock, tokens, trainer.state.log_history, settings=given.set)


def _steps(data: list[Any], job: Job) -> list[list[Any]]:
    each = job.micro * job.accumulation
    return [data[start : start + each] for start in range(0, len(data), each)]


def _packed(data: list[Any], job: Job) -> tuple[Any, list[int]]:
    from core.data.dataset import EncodedDataset

    items = EncodedDataset(data, job.length)
    bins = [sum(len(data[i].input_ids) for i in b) for b in items.bins or []]
    each = job.micro * job.accumulation
    return items, [sum(bins[start : start + each]) for start in range(0, len(bins), each)]


def _packed_by_batch(data: list[Any], job: Job) -> Any:
    """The rows of each micro-batch in one sequence: what is learnt from is what a padded trainer learns from."""
    from core.data.dataset import EncodedDataset

    items = EncodedDataset(data, job.length)
    items.bins = [list(range(start, start + job.micro)) for start in range(0, len(data), job.micro)]
    return items


def _profiled(trainer: Any, place: Path) -> None:
    """Time by kernel of one late step, as a table in `place`."""
    import torch
    from transformers import TrainerCallback

    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    class Profile(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == state.max_steps - 1:
                profiler.start()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == state.max_steps:
                torch.cuda.synchronize()
                profiler.stop()
                table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90)
                place.write_text(table)

    trainer.add_callback(Profile())


if __name__ == "__main__":
    main()
