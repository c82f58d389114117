"""What the second stage adds: sentence similarity rises while tool retrieval is kept.

One chain from a small decoder: stage 1 on tool queries with in-batch negatives, stage 2 on these and on similar
sentence pairs without them. Both models are scored on held-out tool queries and on STS-B dev.
"""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.embedding_runs import arm, pairs_score, prepared

RISE, DROP = 3.0, 0.5


def measure(setting: Setting) -> Measured:
    prepared(setting.work)
    steps = (3, 3) if setting.quick else (300, 200)
    train = f"train: {{max_steps: {steps[0]}, lr: 2e-4}}"
    first = f"{{name: stage1, method: embeddings.stage1, with: {{temperature: 0.05, negatives: 3}}, {train}}}"
    alone = arm(setting.work, "first", [f"stages=[{first}]"])
    both = arm(setting.work, "both", [f"stages.0.train.max_steps={steps[0]}", f"stages.1.train.max_steps={steps[1]}"])
    rise, kept = both["spearman"] - alone["spearman"], both["ndcg@10"] - alone["ndcg@10"]
    from benchmarks.embedding_sets import base_model

    return Measured(
        round(rise, 2),
        rise >= RISE and kept >= -DROP,
        baseline={"base, mean of states": round(pairs_score(base_model()), 2), "TF-IDF": 72.1},
        chance=0.0,
        details={
            "STS-B dev Spearman": [round(alone["spearman"], 2), round(both["spearman"], 2)],
            "tools, nDCG@10": [round(alone["ndcg@10"], 2), round(both["ndcg@10"], 2)],
            "above TF-IDF": both["spearman"] >= 72.1,
        },
    )


BAR = Bar(
    "embeddings.E6",
    "the second stage raises sentence similarity and keeps retrieval",
    "Spearman ×100 gained on STS-B dev",
    f"≥ {RISE:g} with at most {DROP:g} nDCG@10 lost",
    "gpu",
    3,
    measure,
)
