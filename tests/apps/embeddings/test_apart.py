"""Near repeats of held-out examples by brute force over sets, and what a training set loses by them."""

from __future__ import annotations

import random

from apps.embeddings import EmbeddingExample
from apps.embeddings.apart import apart, repeats


def jaccard(a: str, b: str) -> float:
    sets = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_repeats_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr("apps.embeddings.apart.BLOCK", 7)
    chance = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta"]
    texts, others = (
        [" ".join(chance.choices(words, k=chance.randint(1, 4))) for _ in range(count)] for count in (60, 25)
    )
    for threshold in (0.5, 0.8, 1.0):
        wanted = [any(jaccard(text, other) >= threshold - 1e-9 for other in others) for text in texts]
        assert repeats(texts, others, threshold).tolist() == wanted
        assert 0 < sum(wanted) < 60


def test_marks_and_case_hide_nothing():
    assert repeats(["How do I  block my CARD?", "a"], ["how do i block my card", "ab"], 1.0).tolist() == [True, False]


def test_queries_pairs_and_documents():
    train = [
        EmbeddingExample("what is a heart", pos=("an organ",)),
        EmbeddingExample("two dogs run", text2="dogs are running", score=0.9),
        EmbeddingExample("two dogs run", text2="a cat sleeps", score=0.0),
        EmbeddingExample("the document itself", pos=("x",)),
    ]
    held_out = [
        EmbeddingExample("the document itself", id="d"),
        EmbeddingExample("What is a heart?", relevant=(("d", 1.0),), id="q"),
        EmbeddingExample("dogs are running", text2="two dogs run", score=0.8),
    ]
    assert apart(train, held_out, 0.9) == train[2:]
    assert apart(train, [], 0.9) == train


def test_a_recipe_says_what_it_leaves_out():
    from apps.embeddings.methods.contrastive import ContrastiveConfig, _clean

    class Context:
        options, run = ContrastiveConfig(apart=0.9), None
        train = [EmbeddingExample("a question", pos=("b",)), EmbeddingExample("another matter", pos=("b",))]
        eval = [EmbeddingExample("A question!", relevant=(("d", 1.0),))]

    assert [e.text for e in _clean(Context)] == ["another matter"]
    Context.options = ContrastiveConfig()
    assert len(_clean(Context)) == 2
    # A recipe whose data are the same for both (a smoke run's) keeps them and says so.
    Context.options, Context.eval = ContrastiveConfig(apart=0.9), Context.train
    assert _clean(Context) == Context.train
