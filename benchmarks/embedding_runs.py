"""The arms of the embedding bars: tune a small decoder with a pooling, then score tools and sentence pairs.

Every arm, causal or not, is warmed up on the same texts. Arms are small and mostly wait for the host, so several share
a GPU, each in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT
from benchmarks.embedding_sets import TASK, base_model, lexical_hits, metatool_folder, stsb, trained
from benchmarks.sharing import together

RECIPE = ROOT / "benchmarks" / "recipes" / "embedding_tuning.yaml"
TOGETHER = 6


def prepared(work: Path) -> None:
    """Write the tools as a folder and tell the recipe where everything is."""
    os.environ["METATOOL"] = str(metatool_folder(work / "metatool"))
    os.environ["EMBED_BASE"] = str(base_model())


def arms(work: Path, chosen: dict[str, list[str]], train: Callable[..., dict] | None = None) -> dict[str, dict]:
    """`train(work, name, overrides)`, by default `arm`, for each name and its overrides, several at a time on a GPU.

    Returns results by name, in order.
    """
    return together({name: (train or arm, (work, name, words)) for name, words in chosen.items()}, TOGETHER)


def arm(work: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """Train one arm; what it prints goes to `name`.log.

    Returns:
        its nDCG@10 and MRR@10 on held-out tool queries, nDCG@10 fused with BM25, and Spearman on STS-B dev, all ×100.
    """
    from core.evaluation.report import Report

    with open(work / f"{name}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        run, stages = trained(RECIPE, overrides, work / name)
        tools = Report.load(run / "eval" / "after").metrics
        return {
            "ndcg@10": tools["ndcg@10"].value,
            "mrr@10": tools["mrr@10"].value,
            "hybrid": fused_score(run),
            "spearman": pairs_score(run),
            "seconds": sum(stage["seconds"] for stage in stages),
        }


def stages(steps: int, quick: bool) -> str:
    """The override that keeps warm-up and stage 1, with so many steps of the latter."""
    train = f"{{max_steps: {2 if quick else 150}, lr: 3e-4}}"
    warm = f"{{name: warm, method: embeddings.warm, with: {{share: 0.2}}, train: {train}}}"
    options = "{temperature: 0.05, negatives: 3, apart: 0.8}"
    first = f"{{name: stage1, method: embeddings.stage1, with: {options}, train: {{max_steps: {steps}, lr: 2e-4}}}}"
    return f"stages=[{warm}, {first}]"


def pairs_score(model: Path | str) -> float:
    """Spearman of a run or model on STS-B dev, ×100."""
    from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline

    examples = stsb("dev")
    with EmbeddingPipeline.from_pretrained(model) as embed:
        report = EmbeddingEvaluator(["spearman"], bootstrap=0).score(embed.predict(examples), examples)
    return float(report.value("spearman") or 0.0)


def fused_score(run: Path) -> float:
    """nDCG@10 ×100 on held-out tool queries of scaled scores, three parts BM25's and seven the model's of a run."""
    from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline, load_data
    from core.retrieval import Hit, weighted_sum

    examples = load_data(Path(os.environ["METATOOL"]), "beir", split="test", task=TASK)
    queries = [example for example in examples if example.kind == "query"]
    with EmbeddingPipeline.from_pretrained(run) as embed:
        dense = [found for found in embed.predict(examples) if found is not None]
    found = []
    for words, near in zip(lexical_hits(examples), dense):
        fused = weighted_sum([words, [Hit(*hit) for hit in near]], k=100, weights=[0.3, 0.7])
        found.append([list(hit) for hit in fused])
    return float(EmbeddingEvaluator(["ndcg@10"], bootstrap=0).score(found, queries).value("ndcg@10") or 0.0)
