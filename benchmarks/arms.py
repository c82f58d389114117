"""Train the same base in several ways on the same text and say what each gained and what it forgot.

An arm is the `model:` block of a recipe (its edits and adapters) and a learning rate; it is built and trained by the
product's own functions. Every arm searches the same learning rates with one seed and runs the best one with the other
seeds. Runs are small and mostly wait for the host, so several processes share a GPU; each takes the next run when it
is done with one, and keeps its imports and its tokenized text.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT
from benchmarks.domains import model_path
from benchmarks.kept import Kept


@dataclass(frozen=True)
class Scale:
    """Tokens a row, rows a step, and rows to evaluate on."""

    size: int = 256
    batch: int = 16
    held_out: int = 96


QUICK, SMALL = Scale(128, 4, 8), Scale(128, 4, 32)
SEEDS = (0, 1, 2)
SMALL_STEPS = 250


def sizes(quick: bool, steps: int, quick_steps: int) -> dict[str, Any]:
    """How large a comparison is, as `compare` takes it; without a GPU the model and its batches are smaller.

    Args:
        steps: of the full form on a GPU. quick_steps: of the quick form, which has one seed.
    """
    import torch

    small = quick or not torch.cuda.is_available()
    return {
        "model": model_path("tiny-7m" if small else "small-22m"),
        "steps": quick_steps if quick else min(steps, SMALL_STEPS) if small else steps,
        "seeds": SEEDS[:1] if quick else SEEDS,
        "scale": QUICK if quick else SMALL if small else Scale(),
        "workers": default_workers(),
    }


@dataclass(frozen=True)
class Arm:
    """A way to train: edits, adapters, and learning rates to try. `rates` of length one searches nothing.

    Args:
        train: further keys of a recipe's `train:`.
        wrap: "module:function" that gives the Trainer's class a subclass; what an instance's `measured()` says is added
            to the run.
        save: folder for what each run trained, in one of its own that the run names as `folder`.
    """

    name: str
    rates: tuple[float, ...]
    edits: tuple[dict[str, Any], ...] = ()
    adapters: tuple[dict[str, Any], ...] = ()
    train: dict[str, Any] = field(default_factory=dict)
    wrap: str = ""
    save: str = ""


def compare(
    arms: list[Arm],
    work: Path,
    *,
    model: str,
    steps: int,
    seeds: tuple[int, ...],
    workers: int,
    part: str = "all",
    scale: Scale = Scale(),
    start: tuple[dict[str, Any], ...] = (),
    choose: Callable[[str, dict[float, Any], dict[str, Any]], float] | None = None,
) -> dict[str, Any]:
    """Every arm at every rate with the first seed, then at its best rate with the others.

    Args:
        part: of the text to train on, as `domains.text` names it.
        start: edits of the model that gains are counted from, the base by default.
        choose: `(arm, {rate: run}, what was found so far) -> rate`; by default the least loss on new text.

    Returns:
        {"base": {A, B}, "start": {A, B}, "sizes": {model, steps, tokens a step}, "arms": {name: {rate, trainable,
        search: {rate: run}, runs: [one a seed]}}};
        a run is {A, B, seconds, …}, with A the loss on known text and B on held-out text of the part, in nats a token.
    """
    common = {"model": model, "steps": steps, "part": part, "scale": dataclasses.astuple(scale)}
    jobs = [_job(arm, rate, seeds[0], common) for arm in arms for rate in arm.rates]
    untrained = [{**common, "arm": "untrained", "steps": 0, "edits": list(edits)} for edits in ((), start)]
    with Workers(work, min(workers, len(jobs))) as pool:
        first = pool.run([*jobs, *untrained])
        searched, before = first[: len(jobs)], [{"A": run["A"], "B": run["B"]} for run in first[len(jobs) :]]
        shape = {"model": Path(model).name, "steps": steps, "tokens a step": scale.size * scale.batch}
        out: dict[str, Any] = {"base": before[0], "start": before[1], "sizes": shape, "arms": {}}
        further = []
        for arm in arms:
            tried = {job["rate"]: run for job, run in zip(jobs, searched) if job["arm"] == arm.name}
            best = (choose or least_loss)(arm.name, tried, out)
            out["arms"][arm.name] = {
                "rate": best, "trainable": tried[best]["trainable"], "search": tried, "runs": [tried[best]],
            }  # fmt: skip
            further += [_job(arm, best, seed, common) for seed in seeds[1:]]
        for job, run in zip(further, pool.run(further)):
            out["arms"][job["arm"]]["runs"].append(run)
    return out


def least_loss(name: str, tried: dict[float, Any], found: dict[str, Any]) -> float:
    """The rate with the least loss on held-out new text."""
    return min(tried, key=lambda rate: tried[rate]["B"])


def _job(arm: Arm, rate: float, seed: int, common: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in dataclasses.asdict(arm).items() if name not in ("name", "rates")}
    return {**common, **own, "arm": arm.name, "rate": rate, "seed": seed}


def gain(found: dict[str, Any], name: str) -> float:
    """Mean drop of the loss on new text over the seeds, in nats a token."""
    return found["start"]["B"] - statistics.mean(run["B"] for run in found["arms"][name]["runs"])


def forgetting(found: dict[str, Any], name: str) -> float:
    """Mean rise of the loss on known text over the seeds, in nats a token."""
    return statistics.mean(run["A"] for run in found["arms"][name]["runs"]) - found["base"]["A"]


def seeds_run(found: dict[str, Any]) -> int:
    """Seeds that every arm was run with."""
    return min(len(arm["runs"]) for arm in found["arms"].values())


def perplexity(found: dict[str, Any], name: str) -> float:
    """Mean perplexity on held-out text of the part over the seeds."""
    return statistics.mean(math.exp(run["B"]) for run in found["arms"][name]["runs"])


def verdict(found: dict[str, Any], sound: bool, met: bool) -> bool | None:
    """Whether a target is met: None with fewer than three seeds, False at once for arms that are not `sound`.

    An arm that learnt nothing is never sound.
    """
    learnt = all(run["B"] < found["start"]["B"] for arm in found["arms"].values() for run in arm["runs"])
    if not (sound and learnt):
        return False
    return met if seeds_run(found) >= len(SEEDS) else None


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What every comparison reports: seeds, sizes, chosen rates, the losses seed by seed, and all runs."""
    arms = found["arms"]
    return {
        "seeds": seeds_run(found),
        "sizes": found.get("sizes"),
        "trainable": {name: arm["trainable"] for name, arm in arms.items()},
        "rates": {name: arm["rate"] for name, arm in arms.items()},
        "base": found["base"],
        "start": found["start"],
        "held-out loss, by seed": {name: [round(run["B"], 4) for run in arm["runs"]] for name, arm in arms.items()},
        "known text, by seed": {name: [round(run["A"], 4) for run in arm["runs"]] for name, arm in arms.items()},
        "runs": arms,
    }


class Workers:
    """Processes that wait for runs; as many runs at a time as there are processes.

    Args:
        work: folder of their logs and of results. count: how many.
    """

    def __init__(self, work: Path, count: int) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.kept = Kept(work)
        self.logs = [work / f"worker-{number}.log" for number in range(count)]
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.arms"], cwd=ROOT, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
            )
            for log in self.logs
        ]  # fmt: skip

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results of `jobs` in their order; those that are kept are not run again. Raises when one fails."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        results: list[Any] = [self.kept.find(job) for job in jobs]
        for number, result in enumerate(results):
            if result is None:
                waiting.put(number)

        def serve(mine: int) -> None:
            process = self.processes[mine]
            assert process.stdin is not None and process.stdout is not None
            while True:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                print(json.dumps(jobs[number]), file=process.stdin, flush=True)
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"arm '{jobs[number]['arm']}' failed:\n{self.logs[mine].read_text()[-3000:]}")
                results[number], job = json.loads(line), jobs[number]
                name = ", ".join([job["arm"], *(f"{key} {job[key]}" for key in ("rate", "seed") if key in job)])
                self.kept.keep(job, name, results[number])

        with ThreadPoolExecutor(len(self.processes)) as pool:
            list(pool.map(serve, range(len(self.processes))))
        return results


def run_job(job: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    """Train one arm and measure it."""
    import torch

    from benchmarks.domains import blocks, known, text
    from core.config.schema import ModelConfig, TrainConfig
    from core.config.typed import build
    from core.models.load import load_model, load_tokenizer
    from core.training.build import add_adapters, apply_edits, parameter_counts, training_hooks
    from core.training.trainer import SupervisedTrainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = build(
        ModelConfig, {"path": job["model"], "edits": job.get("edits", []), "adapters": job.get("adapters", [])}
    )
    tokenizer, scale = cache.setdefault("tokenizer", load_tokenizer(config)), Scale(*job["scale"])
    if "A" not in cache:
        cache["A"] = evaluation(known().held_out, tokenizer, scale)
        cache["B"] = evaluation(text(job["part"]).held_out, tokenizer, scale)
        cache["train"] = blocks(text(job["part"]).train, tokenizer, scale.size)
    start, seed = time.perf_counter(), job.get("seed", 0)
    model = load_model(config, tokenizer, device=device, dtype="fp32")
    model = apply_edits(model, config.edits, seed, tokenizer, text(job["part"]).train)
    model = add_adapters(model, config.adapters, seed)
    counts, measured = parameter_counts(model), dict[str, Any]()
    if job["steps"]:
        train = build(TrainConfig, {
            "lr": job["rate"], "max_steps": job["steps"], "schedule": "cosine", "warmup": 0.05, "clip": 1.0,
            "betas": [0.9, 0.95], **job.get("train", {}),
        })  # fmt: skip
        cls, callbacks = training_hooks(config, model, SupervisedTrainer)
        if job.get("wrap"):
            module, _, name = job["wrap"].partition(":")
            cls = getattr(importlib.import_module(module), name)(cls)
        model, measured = _fit(cls, callbacks, model, train, cache["train"], scale.batch, seed, device)
    if job.get("save"):
        measured["folder"] = str(Path(job["save"]) / f"{job['rate']:g}-{seed}")
        model.save_pretrained(measured["folder"])
        tokenizer.save_pretrained(measured["folder"])
    return {
        "A": loss(model, cache["A"], device), "B": loss(model, cache["B"], device), **counts, **measured,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def _fit(
    cls: Any, callbacks: list[Any], model: Any, train: Any, rows: list[list[int]], batch: int, seed: int, device: str
) -> tuple[Any, dict[str, Any]]:
    from transformers import TrainingArguments

    from core.data.collate import Collator
    from core.data.dataset import EncodedDataset
    from core.data.encode import Encoded
    from core.training.trainer import CountingCollator

    cpu = device == "cpu"
    args = TrainingArguments(
        output_dir=str(ROOT / "runs" / "benchmarks" / "arms"), per_device_train_batch_size=batch,
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
    measured = trainer.measured() if hasattr(trainer, "measured") else {}
    return trainer.accelerator.unwrap_model(trainer.model), measured


def evaluation(texts: list[str], tokenizer: Any, scale: Scale) -> list[list[int]]:
    """Rows of held-out text, evenly taken."""
    from benchmarks.domains import blocks

    held = blocks(texts, tokenizer, scale.size)
    return held[:: max(1, len(held) // scale.held_out)][: scale.held_out]


def loss(model: Any, rows: list[list[int]], device: str) -> float:
    """Mean next-token loss over blocks, in fp32."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            ids = torch.tensor(rows[start : start + 16], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            )
            count += ids[:, 1:].numel()
    return total / count


def default_workers() -> int:
    """Processes at a time: a GPU takes several small runs, a CPU one a core."""
    import torch

    cores = len(os.sched_getaffinity(0))
    return min(16, cores) if torch.cuda.is_available() else cores


def main() -> None:
    """Run the jobs of standard input, one a line, and write each one's result as a line to standard output."""
    from transformers.utils import logging

    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run prints goes to the log
    logging.disable_progress_bar()
    cache: dict[str, Any] = {}
    for line in sys.stdin:
        print(json.dumps(run_job(json.loads(line), cache)), file=results, flush=True)


if __name__ == "__main__":
    main()
