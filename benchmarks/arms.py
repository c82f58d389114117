"""Train the same base in several ways on the same text and say what each gained and what it forgot.

An arm is the `model:` block of a recipe (its edits and adapters) and a learning rate; it is built and trained by the
product's own functions. Every arm searches the same learning rates with one seed and runs the best one with the other
seeds. Runs are small and mostly wait for the host, so several run at a time, each in its own process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Unavailable

SIZE, BATCH, EVAL_BLOCKS = 256, 16, 96


@dataclass(frozen=True)
class Arm:
    """A way to train: edits, adapters, and learning rates to try. `search` of length one searches nothing."""

    name: str
    rates: tuple[float, ...]
    edits: tuple[dict[str, Any], ...] = ()
    adapters: tuple[dict[str, Any], ...] = ()
    train: dict[str, Any] = field(default_factory=dict)


def compare(
    arms: list[Arm],
    work: Path,
    *,
    model: str,
    steps: int,
    seeds: tuple[int, ...],
    workers: int,
    part: str = "all",
    choose: Callable[[str, dict[float, Any], dict[str, Any]], float] | None = None,
) -> dict[str, Any]:
    """Every arm at every rate with the first seed, then at its best rate with the others.

    Args:
        choose: `(arm, {rate: run}, what was found so far) -> rate`; by default the least loss on new text.

    Returns:
        {"base": {A, B}, "arms": {name: {rate, trainable, search: {rate: run}, runs: [run of each seed]}}}; a run is
        {A, B, seconds, …}, with A the loss on known text and B on held-out new text, in nats a token.
    """
    jobs = [_job(arm, rate, seeds[0], model, steps, part) for arm in arms for rate in arm.rates]
    found = run_jobs([{"arm": "base", "model": model, "part": part, "steps": 0}, *jobs], work, workers)
    base, searched = found[0], found[1:]
    out: dict[str, Any] = {"base": {"A": base["A"], "B": base["B"]}, "arms": {}}
    further = []
    for arm in arms:
        tried = {job["rate"]: run for job, run in zip(jobs, searched) if job["arm"] == arm.name}
        best = (choose or least_loss)(arm.name, tried, out)
        out["arms"][arm.name] = {
            "rate": best, "trainable": tried[best]["trainable"], "search": tried, "runs": [tried[best]],
        }  # fmt: skip
        further += [_job(arm, best, seed, model, steps, part) for seed in seeds[1:]]
    for job, run in zip(further, run_jobs(further, work, workers)):
        out["arms"][job["arm"]]["runs"].append(run)
    return out


def least_loss(name: str, tried: dict[float, Any], found: dict[str, Any]) -> float:
    """The rate with the least loss on held-out new text."""
    return min(tried, key=lambda rate: tried[rate]["B"])


def _job(arm: Arm, rate: float, seed: int, model: str, steps: int, part: str) -> dict[str, Any]:
    return {
        "arm": arm.name, "rate": rate, "seed": seed, "model": model, "steps": steps, "part": part,
        "edits": list(arm.edits), "adapters": list(arm.adapters), "train": arm.train,
    }  # fmt: skip


def gain(found: dict[str, Any], name: str) -> float:
    """Mean drop of the loss on new text over the seeds, in nats a token."""
    return found["base"]["B"] - statistics.mean(run["B"] for run in found["arms"][name]["runs"])


def forgetting(found: dict[str, Any], name: str) -> float:
    """Mean rise of the loss on known text over the seeds, in nats a token."""
    return statistics.mean(run["A"] for run in found["arms"][name]["runs"]) - found["base"]["A"]


def seeds_run(found: dict[str, Any]) -> int:
    """Seeds that every arm was run with."""
    return min(len(arm["runs"]) for arm in found["arms"].values())


def run_jobs(jobs: list[dict[str, Any]], work: Path, workers: int) -> list[dict[str, Any]]:
    """The results of `jobs` in their order, `workers` processes at a time. Raises when one fails."""
    work.mkdir(parents=True, exist_ok=True)
    shares: list[list[int]] = [list(range(start, len(jobs), workers)) for start in range(min(workers, len(jobs)))]

    def share(number: int) -> None:
        mine = work / f"share-{number}.json"
        mine.write_text(json.dumps([jobs[i] for i in shares[number]]))
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.arms", str(mine)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"an arm failed:\n{done.stderr[-3000:]}")

    with ThreadPoolExecutor(max(1, len(shares))) as pool:
        list(pool.map(share, range(len(shares))))
    results: list[Any] = [None] * len(jobs)
    for number, indices in enumerate(shares):
        found = json.loads((work / f"share-{number}.json").with_suffix(".out").read_text())
        for index, result in zip(indices, found):
            results[index] = result
    return results


def run_job(job: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    """Train one arm and measure it."""
    import torch

    from benchmarks.domains import blocks, known, new
    from core.config.schema import ModelConfig, TrainConfig
    from core.config.typed import build
    from core.models.load import load_model, load_tokenizer
    from core.training.build import add_adapters, apply_edits, parameter_counts, training_hooks

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = build(
        ModelConfig, {"path": job["model"], "edits": job.get("edits", []), "adapters": job.get("adapters", [])}
    )
    tokenizer = cache.setdefault("tokenizer", load_tokenizer(config))
    if "A" not in cache:
        cache["A"] = blocks(known().held_out, tokenizer, SIZE)[:: max(1, 1000 // EVAL_BLOCKS)][:EVAL_BLOCKS]
        held = blocks(new(job["part"]).held_out, tokenizer, SIZE)
        cache["B"] = held[:: max(1, len(held) // EVAL_BLOCKS)][:EVAL_BLOCKS]
        cache["train"] = blocks(new(job["part"]).train, tokenizer, SIZE)
    start, seed = time.perf_counter(), job.get("seed", 0)
    model = load_model(config, tokenizer, device=device, dtype="fp32")
    if job["steps"]:
        model = apply_edits(model, config.edits, seed, tokenizer)
        model = add_adapters(model, config.adapters, seed)
        train = build(TrainConfig, {
            "lr": job["rate"], "max_steps": job["steps"], "schedule": "cosine", "warmup": 0.05, "clip": 1.0,
            "betas": [0.9, 0.95], **job.get("train", {}),
        })  # fmt: skip
        model = _fit(model, config, train, cache["train"], seed, device, training_hooks)
    counts = parameter_counts(model)
    return {
        "A": _loss(model, cache["A"], device), "B": _loss(model, cache["B"], device), **counts,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def _fit(model: Any, config: Any, train: Any, rows: list[list[int]], seed: int, device: str, hooks: Any) -> Any:
    from transformers import TrainingArguments

    from core.data.collate import Collator
    from core.data.dataset import EncodedDataset
    from core.data.encode import Encoded
    from core.training.trainer import CountingCollator, SupervisedTrainer

    cls, callbacks = hooks(config, model, SupervisedTrainer)
    cpu = device == "cpu"
    args = TrainingArguments(
        output_dir=str(ROOT / "runs" / "benchmarks" / "arms"), per_device_train_batch_size=BATCH,
        max_steps=train.max_steps,
        learning_rate=train.lr, adam_beta1=train.betas[0], adam_beta2=train.betas[1], weight_decay=train.weight_decay,
        max_grad_norm=train.clip, optim="adamw_torch" if cpu else "adamw_torch_fused", seed=seed, data_seed=seed,
        bf16=not cpu, use_cpu=cpu, logging_steps=10**6, save_strategy="no", disable_tqdm=True, report_to=[],
        remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    dataset = EncodedDataset([Encoded(ids, list(ids)) for ids in rows])
    trainer = cls(
        model=model, args=args, train_dataset=dataset, data_collator=CountingCollator(Collator(0)),
        callbacks=callbacks, train_config=train,
    )  # fmt: skip
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)


def _loss(model: Any, rows: list[list[int]], device: str) -> float:
    """Mean next-token loss over blocks, in fp32."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            ids = torch.tensor(rows[start : start + BATCH], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            )
            count += ids[:, 1:].numel()
    return total / count


def default_workers() -> int:
    """Processes at a time: a GPU takes several small runs, a CPU one."""
    import torch

    return 12 if torch.cuda.is_available() else 1


def main(path: str) -> None:
    """Run the jobs of a file one after the other and write their results beside it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    cache: dict[str, Any] = {}
    try:
        found = [run_job(job, cache) for job in json.loads(Path(path).read_text())]
    except Unavailable as reason:
        raise SystemExit(str(reason)) from reason
    Path(path).with_suffix(".out").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
