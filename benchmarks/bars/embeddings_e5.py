"""Latent attention against mean and last-token pooling, and two directions against one, from a small decoder.

Each arm is tuned on four fifths of MetaTool's queries (stage 1) and scored on the rest, over three seeds; STS-B dev is
reported beside it. BM25 on the same queries is the floor. All arms share base, data, steps and learning rate.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.embedding_runs import arm, prepared
from benchmarks.embedding_sets import TASK, lexical

ARMS = {
    "latent": "{kind: embedding, pooling: latent, latents: 512, heads: 6}",
    "mean": "{kind: embedding, pooling: mean}",
    "last": "{kind: embedding, pooling: last}",
    "causal": "{kind: embedding, pooling: latent, latents: 512, heads: 6, bidirectional: false}",
}
BELOW_MEAN, ABOVE_LAST, ABOVE_CAUSAL = -0.2, 1.0, 1.0


def measure(setting: Setting) -> Measured:
    import statistics

    from apps.embeddings import load_data

    prepared(setting.work)
    seeds = (1,) if setting.quick else (1, 2, 3)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for name, edit in ARMS.items():
        for seed in seeds:
            found[name].append(arm(setting.work, f"{name}{seed}", overrides(edit, seed, setting.quick)))
    mean = {name: statistics.mean(run["ndcg@10"] for run in runs) for name, runs in found.items()}
    floor = lexical(load_data(Path(os.environ["METATOOL"]), "beir", split="test", task=TASK))
    gains = {name: mean["latent"] - mean[name] for name in ("mean", "last", "causal")}
    met = gains["mean"] >= BELOW_MEAN and gains["last"] >= ABOVE_LAST and gains["causal"] >= ABOVE_CAUSAL
    return Measured(
        round(gains["mean"], 2),
        met and mean["latent"] > (floor.value("ndcg@10") or 0),
        baseline={"BM25": round(floor.value("ndcg@10") or 0, 2)},
        chance="1 of 199 tools: nDCG@10 about 2.3",
        details={
            "nDCG@10 on held-out queries": {n: [round(r["ndcg@10"], 2) for r in runs] for n, runs in found.items()},
            "STS-B dev Spearman": {n: [round(r["spearman"], 2) for r in runs] for n, runs in found.items()},
            "latent attention above": {n: round(gain, 2) for n, gain in gains.items()},
            "seconds a run": round(statistics.mean(r["seconds"] for runs in found.values() for r in runs), 1),
        },
    )


def overrides(edit: str, seed: int, quick: bool) -> list[str]:
    steps = 3 if quick else 300
    train = f"train: {{max_steps: {steps}, lr: 2e-4}}"
    stage = f"{{name: stage1, method: embeddings.stage1, with: {{temperature: 0.05, negatives: 3}}, {train}}}"
    return [f"seed={seed}", f"model.edits=[{edit}]", f"stages=[{stage}]"]


BAR = Bar(
    "embeddings.E5",
    "latent attention, mean and last-token pooling, bidirectional and causal, tuned alike on tool retrieval",
    "nDCG@10 of latent attention above the mean's",
    f"≥ {BELOW_MEAN:g}; above last token by {ABOVE_LAST:g}, above causal by {ABOVE_CAUSAL:g}, above BM25",
    "gpu",
    9,
    measure,
)
