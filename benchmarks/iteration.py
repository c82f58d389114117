"""What iteration adds: arms of the same training from the same start, each in a process of its own.

A job is a dictionary: what to train on, from which model, how; where to score what came out. Jobs of one machine share
a cache of verdicts, so the answers that two arms sample alike are simulated once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT
from benchmarks.process import OFFLINE

RECIPE = Path(__file__).resolve().parent / "recipes" / "itertl_effect.yaml"
TEMPLATE, SAMPLES = "spec", 5
SAMPLED = {"temperature": 0.85, "top_p": 0.95}
"""How answers are drawn for pass@1, as VerilogEval does it; greedy answers are reported beside."""


def write_tasks(folder: Path, *, prompts: int, scored: int, seeds: Sequence[int], families: Sequence[str]) -> None:
    """Training tasks of each seed, and two sets of tasks whose parameters no training task has.

    `development` and `test` hold different members of the families: a member belongs to one of them by its hash.
    """
    from apps.rtl.data import to_jsonl
    from apps.rtl.taskgen import tasks

    for seed in seeds:
        found = tasks(prompts, seed=seed, families=families)
        (folder / f"train-{seed}.jsonl").write_text(to_jsonl(found), encoding="utf-8")
    unseen = list(tasks(4 * scored, split="unseen_params", seed=0, families=families))
    for name, parity in (("development", 0), ("test", 1)):
        mine = [e for e in unseen if int((e.id or "").split("-")[1], 16) % 2 == parity][:scored]
        (folder / f"{name}.jsonl").write_text(to_jsonl(mine), encoding="utf-8")


def start_job(folder: Path, seed: int, sizes: dict[str, Any], workers: int) -> dict[str, Any]:
    """The job of the model that every arm of a seed starts from: it learns references."""
    return {
        "name": f"references-{seed}", "seed": seed, "base": None, "folder": str(folder), "workers": workers,
        "method": "rtl.sft", "with": {"template": TEMPLATE}, **sizes,
    }  # fmt: skip


def arm_job(start: dict[str, Any], base: str, name: str, iterations: int, choice: dict[str, Any]) -> dict[str, Any]:
    """The job of an arm: rounds of sampling, ranking and training from the model in `base`.

    Args:
        choice: {"with": options of rtl.itertl, "train": the recipe's block}.
    """
    return {
        **start, "name": f"{name}-{start['seed']}", "base": base, "method": "rtl.itertl",
        "with": {"template": TEMPLATE, "max_new_tokens": start["longest"], "iterations": iterations, **choice["with"]},
        "train": choice["train"],
    }  # fmt: skip


def run_jobs(jobs: Sequence[dict[str, Any]], at_once: int) -> Iterator[dict[str, Any]]:
    """Results in the order of the jobs. Raises `RuntimeError` with the end of a failed job's output."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(_in_a_process, jobs)


def _in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    environment = {
        **os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }  # fmt: skip
    log = Path(job["folder"]) / f"{job['name']}.log"
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.iteration"], input=json.dumps(job), cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the arm {job['name']} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    scores = {name: result[name]["pass@1"] for name in job["score"]}
    print(f"{job['name']}: pass@1 {scores}, {result['seconds']} s", file=sys.stderr, flush=True)
    return result


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train one model and score it by strict verdicts on its answers.

    Returns:
        {"name", "model": its folder, "device", "seconds", "isolation", "tools", "iterations": a line of each, and for
        each set of tasks its metrics in percent}.
    """
    import time

    import torch

    from apps.rtl import RtlEvaluator, RtlPipeline, load_data
    from core.config.load import parse_yaml, recipe_from
    from core.config.run_folder import RunFolder
    from core.training.run import train

    begun, folder = time.perf_counter(), Path(job["folder"])
    raw, places = parse_yaml(RECIPE.read_text(encoding="utf-8"), str(RECIPE))
    raw.update(seed=job["seed"], output=str(folder / "runs" / job["name"]), method=job["method"])
    raw["model"] = {"path": job["base"]} if job["base"] else {"preset": job["preset"], "tokenizer": "bpe:1024"}
    raw["data"]["train"] = [{"reader": "jsonl", "path": str(folder / f"train-{job['seed']}.jsonl")}]
    raw["with"], raw["train"] = job["with"], {**raw["train"], **job["train"]}
    if job["base"]:
        cache = {"cache": str(folder / "verdicts"), "engine": "iverilog"}
        raw["verify"] = {"name": "rtl", "timeout_s": 5, "sandbox": job["sandbox"], "workers": job["workers"],
                         "with": cache}  # fmt: skip
    run = RunFolder.create(recipe_from(raw, places))
    train(recipe_from(raw, places), run)
    trained = time.perf_counter() - begun
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"name": job["name"], "model": str(run.model_dir), "device": device}
    result["trained, s"] = round(trained, 1)
    evaluator = RtlEvaluator(
        ("pass@1", "compiles", "match"), engine="iverilog", sandbox=job["sandbox"], workers=job["workers"],
        sim_timeout_s=5, cache=folder / "verdicts", bootstrap=0,
    )  # fmt: skip
    with RtlPipeline.from_pretrained(run.model_dir) as pipeline:
        how: dict[str, Any] = {"max_tokens": job["tokens"], "max_size": 2048, "max_new_tokens": job["longest"]}
        for name in job["score"]:
            examples = load_data(folder / f"{name}.jsonl")
            samples = pipeline.predict(examples, samples=SAMPLES, seed=job["seed"], **SAMPLED, **how)
            report = evaluator.score(samples, examples)
            result[name] = {metric: round(m.value, 3) for metric, m in report.metrics.items() if m.value is not None}
            greedy = evaluator.score([r.text for r in pipeline.batch(examples, **how)], examples)
            result[name]["greedy pass@1"] = greedy.metrics["pass@1"].value
    result["isolation"], result["tools"] = report.signature["isolation"], report.signature["tools"]
    told = (run.path / "log.txt").read_text(encoding="utf-8").splitlines()
    result["iterations"] = [line for line in told if "mean_score" in line]
    return {**result, "seconds": round(time.perf_counter() - begun, 1)}


if __name__ == "__main__":
    told = json.load(sys.stdin)
    real, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(run_job(told)), file=real)
