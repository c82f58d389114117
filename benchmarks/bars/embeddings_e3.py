"""Search metrics are trec_eval's, correlations scipy's, and an MTEB task over the same files gives our figure.

1,000 random runs with graded judgements, documents that nobody judged, and many equal scores. The MTEB part runs where
the package is installed; it works offline on a task of our own class.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

TOLERANCE = 1e-6
MEASURES = ("ndcg_cut_10", "recall_100", "map", "recip_rank")


def measure(setting: Setting) -> Measured:
    if importlib.util.find_spec("pytrec_eval") is None:
        raise Unavailable("pytrec_eval is not installed: pip install pytrec-eval-terrier")
    ranks, ties = trec(100 if setting.quick else 1000)
    linear = correlations(20 if setting.quick else 200)
    mteb: Any = "unavailable: mteb is not installed"
    if importlib.util.find_spec("mteb") is not None:
        mteb = with_mteb()
    largest = max(ranks, linear, mteb if isinstance(mteb, float) else 0.0)
    return Measured(
        largest,
        largest <= TOLERANCE and ties > 0,
        details={"trec_eval": ranks, "scipy": linear, "mteb": mteb, "runs in which equal scores decide": ties},
    )


def trec(count: int) -> tuple[float, int]:
    """Largest difference, and how many runs would score otherwise if equal scores came in another order."""
    import numpy as np
    import pytrec_eval

    from apps.embeddings import ranking

    random, largest, ties = np.random.default_rng(0), 0.0, 0
    names = [f"d{i}" for i in range(150)]
    for case in range(count):
        steps = int(random.integers(2, 40))
        run = {name: float(random.integers(0, steps) / 7) for name in random.permutation(names)[: 5 + case % 140]}
        judged = {name: int(grade) for name, grade in zip(random.permutation(names)[:20], random.integers(0, 4, 20))}
        if not any(judged.values()):
            continue
        found = pytrec_eval.RelevanceEvaluator({"q": judged}, set(MEASURES)).evaluate({"q": run})["q"]
        order = ranking.ordered(run.items())
        ours = {
            "ndcg_cut_10": ranking.ndcg(order, judged),
            "recall_100": ranking.recall(order, judged),
            "map": ranking.average_precision(order, judged),
            "recip_rank": ranking.reciprocal_rank(order, judged, None),
        }
        largest = max(largest, *(abs(ours[name] - found[name]) for name in MEASURES))
        other = sorted(run, key=lambda name: (-run[name], name))
        ties += abs(ranking.ndcg(other, judged) - found["ndcg_cut_10"]) > TOLERANCE
    return largest, ties


def correlations(count: int) -> float:
    import numpy as np
    from scipy.stats import pearsonr, spearmanr

    from apps.embeddings import EmbeddingEvaluator, EmbeddingExample

    random, largest = np.random.default_rng(1), 0.0
    for _ in range(count):
        wanted, given = np.round(random.random(60), 1), np.round(random.normal(size=60), 1)
        pairs = [EmbeddingExample("a", text2="b", score=float(s)) for s in wanted]
        report = EmbeddingEvaluator(["spearman", "pearson"], bootstrap=0).score(given.tolist(), pairs)
        for name, theirs in (("spearman", spearmanr), ("pearson", pearsonr)):
            largest = max(largest, abs((report.value(name) or 0) / 100 - float(theirs(given, wanted).statistic)))
    return largest


def with_mteb() -> float:
    """Largest difference on what ships: search and graded pairs."""
    from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline, load_data
    from apps.embeddings.mteb import evaluate

    embed, largest = EmbeddingPipeline.from_pretrained("embedded", device="cpu"), 0.0
    for reader, name, theirs in (
        ("embedded", "ndcg@10", "ndcg_at_10"),
        ("embedded_pairs", "spearman", "cosine_spearman"),
    ):
        examples = load_data(reader=reader, split="test")
        ours = EmbeddingEvaluator([name], bootstrap=0).score(embed.predict(examples), examples).value(name) or 0.0
        # MTEB rounds the scores of searches to five places.
        largest = max(largest, abs(round(ours / 100, 5) - round(evaluate(embed, examples)[theirs], 5)))
    return largest


BAR = Bar(
    "embeddings.E3",
    "search metrics equal trec_eval's on random runs with ties, correlations scipy's, tasks MTEB's",
    "largest difference",
    f"≤ {TOLERANCE:g}",
    "cpu",
    1,
    measure,
)
