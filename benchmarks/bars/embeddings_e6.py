"""What the second stage adds: sentence similarity rises while tool retrieval is kept.

Chains from a small decoder that was warmed up, three seeds: stage 1 on tool queries with in-batch negatives, stage 2 on
these and on similar sentence pairs without them. The model after stage 1 and the one after both are scored on held-out
tool queries and on STS-B dev.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.embedding_runs import RECIPE, arms, pairs_score, prepared
from benchmarks.embedding_sets import TASK, base_model, lexical_spearman, stsb, trained

RISE, DROP = 3.0, 0.5
QUICK = ("train.batch.size=16", "eval.limit=400", *(f"stages.{i}.train.max_steps={n}" for i, n in enumerate((2, 3, 3))))


def measure(setting: Setting) -> Measured:
    prepared(setting.work)
    seeds = (1,) if setting.quick else (1, 2, 3)
    short = QUICK if setting.quick else ()
    runs = arms(setting.work, {f"chain{seed}": [f"seed={seed}", *short] for seed in seeds}, chain).values()
    found = {
        metric: [[round(run[when][metric], 2) for run in runs] for when in ("alone", "both")]
        for metric in ("spearman", "ndcg@10")
    }
    rise, kept = (statistics.mean(both) - statistics.mean(alone) for alone, both in found.values())
    return Measured(
        round(rise, 2),
        rise >= RISE and kept >= -DROP,
        baseline={"base, mean of states": round(pairs_score(base_model()), 2), "TF-IDF": lexical_spearman()},
        chance=0.0,
        details={
            "STS-B dev Spearman, stage 1 and both": found["spearman"],
            "tools, nDCG@10, stage 1 and both": found["ndcg@10"],
            "nDCG@10 gained": round(kept, 2),
        },
    )


def chain(work: Path, name: str, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Train the stages; the figures of the model after stage 1 ("alone") and after both."""
    from safetensors.torch import load_file

    from apps.embeddings import EmbeddingPipeline

    limit = 400 if "eval.limit=400" in overrides else None
    with open(work / f"{name}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        run, _ = trained(RECIPE, overrides, work / name)
        with EmbeddingPipeline.from_pretrained(run) as embed:
            both = scores(embed, limit)
            embed.model.load_state_dict(load_file(run / "stages" / "01-stage1" / "weights" / "model.safetensors"))
            return {"both": both, "alone": scores(embed, limit)}


def scores(embed: Any, limit: int | None) -> dict[str, float]:
    """nDCG@10 on held-out tool queries and Spearman on STS-B dev, ×100."""
    from apps.embeddings import EmbeddingEvaluator, load_data

    tools = load_data(Path(os.environ["METATOOL"]), "beir", split="test", task=TASK, limit=limit)
    found = {}
    for metric, examples in (("ndcg@10", tools), ("spearman", stsb("dev"))):
        report = EmbeddingEvaluator([metric], bootstrap=0).score(embed.predict(examples), examples)
        found[metric] = float(report.value(metric) or 0.0)
    return found


BAR = Bar(
    "embeddings.E6",
    "the second stage raises sentence similarity and keeps retrieval",
    "Spearman ×100 gained on STS-B dev",
    f"≥ {RISE:g} with at most {DROP:g} nDCG@10 lost",
    "gpu",
    3,
    measure,
)
