"""MTEB's figures on examples in memory are ours; without MTEB the error says how to get it."""

from __future__ import annotations

import importlib.util

import pytest

from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline, load_data
from apps.embeddings import mteb as bridge
from core.errors import BackendUnavailable


@pytest.fixture(scope="module")
def embed():
    return EmbeddingPipeline.from_pretrained("any", engine="tiny")


@pytest.mark.parametrize(
    ("reader", "ours", "theirs"),
    [("embedded", "ndcg@10", "ndcg_at_10"), ("embedded_pairs", "spearman", "cosine_spearman")],
)
def test_the_same_figure(embed, reader, ours, theirs):
    pytest.importorskip("mteb")
    examples = load_data(reader=reader, split="test")
    value = EmbeddingEvaluator([ours], bootstrap=0).score(embed.predict(examples), examples).value(ours)
    # MTEB rounds the scores of searches to five places.
    assert bridge.evaluate(embed, examples)[theirs] == pytest.approx(value / 100, abs=6e-6)


def test_the_same_accuracy(embed):
    pytest.importorskip("mteb")
    examples = load_data(reader="embedded_labels")
    train, test = examples[::2], examples[1::2]
    labels = [example.label for example in train]
    judge = EmbeddingEvaluator(["accuracy"], seed=42, shots=8, fit=(embed.predict(train), labels))
    ours = judge.score(embed.predict(test), test).value("accuracy")
    assert bridge.evaluate(embed, test, train=train)["accuracy"] == pytest.approx(ours / 100, abs=6e-6)


def test_without_mteb_the_error_says_so(embed):
    if importlib.util.find_spec("mteb") is not None:
        pytest.skip("mteb is installed")
    with pytest.raises(BackendUnavailable, match="mteb is not installed"):
        bridge.as_mteb(embed)
