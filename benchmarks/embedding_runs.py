"""One arm of the embedding bars: tune a small decoder with a pooling, then score tools and sentence pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT
from benchmarks.embedding_sets import base_model, metatool_folder, stsb, trained

RECIPE = ROOT / "benchmarks" / "recipes" / "embedding_tuning.yaml"


def prepared(work: Path) -> None:
    """Write the tools as a folder and tell the recipe where everything is."""
    os.environ["METATOOL"] = str(metatool_folder(work / "metatool"))
    os.environ["EMBED_BASE"] = str(base_model())


def arm(work: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """Train one arm. Returns its nDCG@10 and MRR@10 on held-out tool queries, and Spearman on STS-B dev."""
    from core.evaluation.report import Report

    run, stages = trained(RECIPE, overrides, work / name)
    tools = Report.load(run / "eval" / "after").metrics
    return {
        "ndcg@10": tools["ndcg@10"].value,
        "mrr@10": tools["mrr@10"].value,
        "spearman": pairs_score(run),
        "seconds": sum(stage["seconds"] for stage in stages),
        "run": run,
    }


def pairs_score(model: Path | str) -> float:
    """Spearman of a run or model on STS-B dev, ×100."""
    from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline

    examples = stsb("dev")
    with EmbeddingPipeline.from_pretrained(model) as embed:
        report = EmbeddingEvaluator(["spearman"], bootstrap=0).score(embed.predict(examples), examples)
    return float(report.value("spearman") or 0.0)
