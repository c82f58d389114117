"""MTEB's own figures of a sentence-transformers model on tasks in files: `python mteb_scores.py MODEL FOLDER`.

Runs where mteb is installed and uses nothing of this project: its loader, its encoder, its tasks, its scores. FOLDER
holds search.json {documents, queries, judged}, pairs.json [[a, b, score]], labels.json {train, test: [[text, label]]};
each task's scores go to standard output as one JSON object, with the versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import mteb
from datasets import Dataset
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata


def metadata(name: str, kind: str, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name, description="A task in files.", type=kind, dataset={"path": "local", "revision": "local"},
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score=score,
    )  # fmt: skip


class Search(AbsTaskRetrieval):
    """search.json"""

    metadata = metadata("Search", "Retrieval", "ndcg_at_10")

    def load_data(self, *args, **options):
        given = json.loads((FOLDER / "search.json").read_text(encoding="utf-8"))
        corpus = [{"id": name, "title": "", "text": text} for name, text in given["documents"].items()]
        queries = [{"id": name, "text": text} for name, text in given["queries"].items()]
        split = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
        self.dataset = {"default": {"test": {**split, "relevant_docs": given["judged"], "top_ranked": None}}}
        self.data_loaded = True


class Pairs(AbsTaskSTS):
    """pairs.json"""

    metadata = metadata("Pairs", "STS", "cosine_spearman")
    min_score, max_score = 0, 1

    def load_data(self, *args, **options):
        rows = json.loads((FOLDER / "pairs.json").read_text(encoding="utf-8"))
        named = [dict(zip(("sentence1", "sentence2", "score"), row)) for row in rows]
        self.dataset = {"test": Dataset.from_list(named)}
        self.data_loaded = True


class Labels(AbsTaskClassification):
    """labels.json"""

    metadata = metadata("Labels", "Classification", "accuracy")

    def load_data(self, *args, **options):
        given = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8"))
        self.dataset = {
            split: Dataset.from_list([{"text": text, "label": label} for text, label in rows])
            for split, rows in given.items()
        }
        self.data_loaded = True


if __name__ == "__main__":
    from sentence_transformers import SentenceTransformer

    FOLDER = Path(sys.argv[2])
    model = SentenceTransformer(sys.argv[1], device="cpu")
    found = mteb.evaluate(model, [Search(), Pairs(), Labels()], cache=None, show_progress_bar=False)
    scores = {result.task_name: result.scores["test"][0] for result in found.task_results}
    versions = {name: importlib.metadata.version(name) for name in ("mteb", "sentence-transformers", "torch")}
    kept = {name: {k: v for k, v in own.items() if isinstance(v, float)} for name, own in scores.items()}
    print(json.dumps({"scores": kept, "versions": versions}))
