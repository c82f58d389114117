"""The same model on the same three tasks in MTEB and here: search, graded pairs, classification.

MiniLM on MetaTool (a fold of its queries), STS-B dev and Banking77 (trained on four folds, tested on one). MTEB runs in
an environment of its own, named by MTEB_PYTHON as an interpreter, and loads, encodes and scores by itself; it gets
texts and labels and nothing else from us. The value is the largest difference of a figure. What float noise may flip is
one text of a test set.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting, Unavailable
from benchmarks.embedding_sets import metatool_folder, package_model, placed, stsb
from core.config.files import write_text

TOLERANCE, SEED = 5e-4, 42
NAMES = {
    "Search": {"ndcg@10": "ndcg_at_10", "recall@100": "recall_at_100", "map": "map_at_100", "mrr@10": "mrr_at_10"},
    "Pairs": {"spearman": "cosine_spearman", "pearson": "cosine_pearson"},
    "Labels": {"accuracy": "accuracy"},
}


def measure(setting: Setting) -> Measured:
    peer = os.environ.get("MTEB_PYTHON", "")
    if not Path(peer).is_file():
        raise Unavailable("MTEB_PYTHON names no interpreter with mteb")
    tasks = examples(setting.work / "metatool", 200 if setting.quick else None)
    write_tasks(tasks, setting.work)
    ours, theirs = our_scores(tasks), peer_scores(peer, setting.work)
    rows = {
        f"{task}, {name}": [round(ours[task][name], 6), round(theirs["scores"][task][other], 6)]
        for task, names in NAMES.items()
        for name, other in names.items()
    }
    largest = max(abs(a - b) for a, b in rows.values())
    return Measured(
        round(largest, 7),
        largest <= TOLERANCE,
        baseline=theirs["versions"],
        details={"ours and theirs": rows, "texts": {name: len(own) for name, own in tasks.items()}},
    )


def examples(folder: Path, limit: int | None) -> dict[str, list[Any]]:
    """The tasks' examples: documents and queries, pairs, and labelled texts to train on and to test."""
    from apps.embeddings import load_data

    search = load_data(metatool_folder(folder), "beir", split="test", task="")
    fold = {
        split: load_data(placed("embeddings/banking77/train.csv"), "labels", split=split, fold=0, task="")
        for split in ("train", "test")
    }
    tasks = {"Search": search, "Pairs": stsb("dev")[:limit], "train": fold["train"], "Labels": fold["test"]}
    if limit:
        few = sorted({e.label for e in fold["test"]})[:5]
        tasks |= {name: [e for e in tasks[name] if e.label in few] for name in ("train", "Labels")}
        tasks["Search"] = search[: 2 * limit]
    return tasks


def write_tasks(tasks: dict[str, list[Any]], folder: Path) -> None:
    documents = {e.id: e.text for e in tasks["Search"] if e.kind == "document"}
    asked = [e for e in tasks["Search"] if e.kind == "query"]
    judged = {e.id: {name: int(grade) for name, grade in e.relevant} for e in asked}
    search = {"documents": documents, "queries": {e.id: e.text for e in asked}, "judged": judged}
    labels = {split: [[e.text, e.label] for e in tasks[n]] for split, n in (("train", "train"), ("test", "Labels"))}
    pairs = [[e.text, e.text2, e.score] for e in tasks["Pairs"]]
    for name, given in (("search", search), ("pairs", pairs), ("labels", labels)):
        write_text(folder / f"{name}.json", json.dumps(given, ensure_ascii=False))


def our_scores(tasks: dict[str, list[Any]]) -> dict[str, dict[str, float]]:
    from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline

    found = {}
    with EmbeddingPipeline.from_pretrained(package_model(), device="cpu") as embed:
        fit = (embed.predict(tasks["train"]), [e.label for e in tasks["train"]])
        for task, names in NAMES.items():
            judge = EmbeddingEvaluator(list(names), bootstrap=0, seed=SEED, fit=fit, same_id=False)
            report = judge.score(embed.predict(tasks[task]), tasks[task])
            found[task] = {name: (report.value(name) or 0.0) / 100 for name in names}
    return found


def peer_scores(python: str, folder: Path) -> dict[str, Any]:
    from core.models.load import resolve_path

    script = ROOT / "benchmarks" / "peers" / "mteb_scores.py"
    command = [python, str(script), str(resolve_path(package_model())), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


BAR = Bar(
    "embeddings.mteb",
    "search, graded pairs and classification of one model, scored by MTEB and here",
    "largest difference of a score from 0 to 1",
    f"≤ {TOLERANCE:g}",
    "cpu",
    4,
    measure,
)
