"""Banking77 in five folds: logistic regression on MiniLM's embeddings against TF-IDF with a linear SVM.

Both see the same texts in the same folds of equal class shares (Casanueva et al. 2020). Nothing of the encoder trains.
"""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.embedding_sets import package_model, placed

TARGET = 90.0


def measure(setting: Setting) -> Measured:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    from apps.embeddings import EmbeddingPipeline, load_data

    examples = load_data(placed("embeddings/banking77/train.csv"), "labels")
    if setting.quick:
        classes = sorted({example.label for example in examples})[:10]
        examples = [example for example in examples if example.label in classes]
    texts = [example.text for example in examples]
    labels = np.array([example.label for example in examples])
    with EmbeddingPipeline.from_pretrained(package_model(), device="cpu") as embed:
        vectors = embed(texts)
    ours, plain = [], []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(texts, labels):
        judge = LogisticRegression(C=30, max_iter=500).fit(vectors[train], labels[train])
        ours.append(100 * judge.score(vectors[test], labels[test]))
        words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
        words.fit([texts[i] for i in train], labels[train])
        plain.append(100 * words.score([texts[i] for i in test], labels[test]))
        if setting.quick:
            break
    value, floor = float(np.mean(ours)), float(np.mean(plain))
    return Measured(
        round(value, 2),
        value >= TARGET and value > floor,
        baseline={"TF-IDF + linear SVM": round(floor, 2)},
        chance=round(100 / len(set(labels.tolist())), 2),
        details={"folds": [round(v, 2) for v in ours], "texts": len(texts)},
    )


BAR = Bar(
    "embeddings.banking77",
    "intents of Banking77 from frozen MiniLM embeddings, five folds",
    "% accuracy",
    f"≥ {TARGET:g} and above TF-IDF + SVM on the same folds",
    "cpu",
    6,
    measure,
)
