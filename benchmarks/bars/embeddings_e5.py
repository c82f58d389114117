"""Latent attention against mean and last-token pooling, and two directions against one, from a small decoder.

Each arm is warmed up on hidden tokens and tuned on four fifths of MetaTool's queries (stage 1), and scored on the rest,
over three seeds; STS-B dev is reported beside it. BM25 on the same queries is the floor. All arms share base, data,
steps and learning rate. What two directions add is reported and decides nothing: a base of this size, trained in one
direction, loses by them.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.embedding_runs import arms, prepared, stages
from benchmarks.embedding_sets import TASK, lexical

EDITS = {
    "latent": "{kind: embedding, pooling: latent, latents: 512, heads: 6}",
    "mean": "{kind: embedding, pooling: mean}",
    "last": "{kind: embedding, pooling: last}",
    "causal": "{kind: embedding, pooling: latent, latents: 512, heads: 6, bidirectional: false}",
}
BELOW_MEAN, ABOVE_LAST, ABOVE_WORDS = -0.2, 1.0, 1.0


def measure(setting: Setting) -> Measured:
    from apps.embeddings import load_data

    prepared(setting.work)
    seeds = (1,) if setting.quick else (1, 2, 3)
    chosen = {f"{name}{seed}": overrides(edit, seed, setting.quick) for name, edit in EDITS.items() for seed in seeds}
    runs = arms(setting.work, chosen)
    found = {name: [runs[f"{name}{seed}"] for seed in seeds] for name in EDITS}
    mean = {name: statistics.mean(run["ndcg@10"] for run in own) for name, own in found.items()}
    words = lexical(load_data(Path(os.environ["METATOOL"]), "beir", split="test", task=TASK)).value("ndcg@10") or 0.0
    hybrid = statistics.mean(run["hybrid"] for run in found["latent"])
    return Measured(
        round(mean["latent"] - mean["mean"], 2),
        baseline={"BM25": round(words, 2)},
        chance="1 of 199 tools: nDCG@10 about 2.3",
        details={
            "nDCG@10 on held-out queries": {n: [round(r["ndcg@10"], 2) for r in own] for n, own in found.items()},
            "STS-B dev Spearman": {n: [round(r["spearman"], 2) for r in own] for n, own in found.items()},
            "latent attention above": {n: round(mean["latent"] - mean[n], 2) for n in ("mean", "last", "causal")},
            "latent attention fused with BM25": round(hybrid, 2),
            "seconds a run": round(statistics.mean(run["seconds"] for run in runs.values()), 1),
        },
    )


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The verdict on a result, measured or stored."""
    if not (details := result.get("details")):
        return result
    gains, fused = details["latent attention above"], details["latent attention fused with BM25"]
    met = gains["mean"] >= BELOW_MEAN and gains["last"] >= ABOVE_LAST
    return {**result, "target": BAR.target, "pass": met and fused >= result["baseline"]["BM25"] + ABOVE_WORDS}


def overrides(edit: str, seed: int, quick: bool) -> list[str]:
    short = ["train.batch.size=16", "eval.limit=400"] if quick else []
    return [f"seed={seed}", f"model.edits=[{edit}]", stages(3 if quick else 300, quick), *short]


BAR = Bar(
    "embeddings.E5",
    "latent attention, mean and last-token pooling, bidirectional and causal, tuned alike on tool retrieval",
    "nDCG@10 of latent attention above the mean's",
    f"≥ {BELOW_MEAN:g}; above last token by {ABOVE_LAST:g}, fused above BM25 by {ABOVE_WORDS:g}",
    "gpu",
    4,
    measure,
    judged,
)
