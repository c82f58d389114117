"""What the second stage adds: sentence similarity rises while tool retrieval is kept.

Chains from a small decoder that was warmed up, three seeds: stage 1 on tool queries with in-batch negatives, stage 2 on
these and on similar sentence pairs without them. Both models are scored on held-out tool queries and on STS-B dev.
"""

from __future__ import annotations

import statistics

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.embedding_runs import arms, pairs_score, prepared, stages
from benchmarks.embedding_sets import base_model, lexical_spearman

RISE, DROP = 3.0, 0.5


def measure(setting: Setting) -> Measured:
    prepared(setting.work)
    seeds = (1,) if setting.quick else (1, 2, 3)
    first, second = (3, 3) if setting.quick else (300, 200)
    chosen = {}
    for seed in seeds:
        shared = [f"seed={seed}", *(["train.batch.size=16", "eval.limit=400"] if setting.quick else [])]
        steps = [f"stages.1.train.max_steps={first}", f"stages.2.train.max_steps={second}"]
        chosen[f"both{seed}"] = [*shared, *steps, *(["stages.0.train.max_steps=2"] if setting.quick else [])]
        chosen[f"alone{seed}"] = [*shared, stages(first, setting.quick)]
    runs = arms(setting.work, chosen)
    mean = {
        (kind, metric): statistics.mean(runs[f"{kind}{seed}"][metric] for seed in seeds)
        for kind in ("alone", "both")
        for metric in ("spearman", "ndcg@10")
    }
    rise, kept = (mean["both", metric] - mean["alone", metric] for metric in ("spearman", "ndcg@10"))
    return Measured(
        round(rise, 2),
        rise >= RISE and kept >= -DROP,
        baseline={"base, mean of states": round(pairs_score(base_model()), 2), "TF-IDF": lexical_spearman()},
        chance=0.0,
        details={
            "STS-B dev Spearman, stage 1 and both": seed_by_seed(runs, seeds, "spearman"),
            "tools, nDCG@10, stage 1 and both": seed_by_seed(runs, seeds, "ndcg@10"),
            "nDCG@10 gained": round(kept, 2),
        },
    )


def seed_by_seed(runs: dict, seeds: tuple[int, ...], metric: str) -> list[list[float]]:
    return [[round(runs[f"{kind}{seed}"][metric], 2) for seed in seeds] for kind in ("alone", "both")]


BAR = Bar(
    "embeddings.E6",
    "the second stage raises sentence similarity and keeps retrieval",
    "Spearman ×100 gained on STS-B dev",
    f"≥ {RISE:g} with at most {DROP:g} nDCG@10 lost",
    "gpu",
    3,
    measure,
)
