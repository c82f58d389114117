"""Passages by words, vectors and both; snippets; abstention; every arm of the grid on the same questions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apps.qa import QaExample, QaPipeline, load_data
from apps.qa.grid import answer_grid, as_row, encyclopedia, retrieved, table
from apps.qa.metrics import found_documents
from apps.qa.passages import Passages, sentences, snippets
from core.config.load import load_recipe
from core.config.run_folder import RunFolder
from core.errors import ConfigError, DataError
from core.training.run import train

TEXTS = [
    "The heart pumps blood. It has four chambers.",
    "Renal corpuscles clean plasma.",
    "Bile is green. The liver makes it.",
]


def embed(texts, kind):
    """Two directions: kidney and everything else."""
    renal = [any(word in text.lower() for word in ("renal", "kidney")) for text in texts]
    return np.array([[1.0, 0.1] if yes else [0.1, 1.0] for yes in renal], dtype=np.float32)


def test_words_vectors_and_both():
    index = Passages(TEXTS, embed)
    assert index.search("What does the kidney clean?", 1) == [1]
    assert index.search("kidney", 3) == [] and index.search("kidney", 1, "dense") == [1]
    # Both rankings hold passage 2, only the vectors hold passage 1, which they put first.
    assert index.search("kidney liver", 2, "hybrid") == [2, 1]
    with pytest.raises(ConfigError, match="needs vectors"):
        Passages(TEXTS).search("kidney", 1, "dense")


def test_expansion_adds_the_words_that_weigh_most():
    index = Passages(["aorta aorta vessel", "vessel wall", "bone"])
    assert index.expanded("aorta", 0) == "aorta" and index.expanded("nothing", 3) == "nothing"
    assert index.expanded("aorta", 1) == "aorta vessel"
    assert [len(index.search("aorta", 3, expand=n)) for n in (0, 1)] == [1, 2]


def test_snippets_keep_the_order_and_the_number():
    assert sentences("It was 3.5 mg. Then Dr. Who left! Why?") == ["It was 3.5 mg.", "Then Dr.", "Who left!", "Why?"]
    assert snippets("Which organ makes bile, the liver?", TEXTS, 2) == ("Bile is green. The liver makes it.",)
    assert snippets("unknown words", TEXTS, 2) == ("The heart pumps blood. It has four chambers.",)
    assert snippets("x", (), 2) == ()


def test_documents_by_hand():
    # Question 1: right at ranks 1 and 3 of three, two relevant. Question 2: nothing.
    found = found_documents([["a", "x", "b"], ["y"]], [{"a", "b"}, {"z"}])
    assert found["precision"] == pytest.approx(2 / 3 / 2) and found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(0.8 / 2) and found["map"] == pytest.approx((1 + 2 / 3) / 2 / 2)
    assert found["gmap"] == pytest.approx(((5 / 6 + 0.01) * 0.01) ** 0.5)


@pytest.fixture(scope="module")
def ask():
    return QaPipeline.from_pretrained("any", engine="tiny")


def test_own_passages_more_and_none(ask):
    example = QaExample("Does the heart pump blood?", contexts=(TEXTS[0],))
    ask.use(corpus=TEXTS)
    ask.config = dataclasses.replace(ask.config, passages=1, extra=0, snippets=0)
    assert ask.retrieve(example) == (TEXTS[0],) and ask.retrieve(QaExample("Is bile green?")) == (TEXTS[2],)
    ask.config = dataclasses.replace(ask.config, extra=2)
    more = ask.retrieve(QaExample("Does the liver pump blood?", contexts=(TEXTS[0],)))
    assert more[0] == TEXTS[0] and more.count(TEXTS[0]) == 1 and TEXTS[2] in more
    ask.config = dataclasses.replace(ask.config, extra=0, snippets=1)
    assert ask.retrieve(example) == ("The heart pumps blood.",)
    ask.config = dataclasses.replace(ask.config, snippets=0)


def test_an_unsure_pipeline_abstains(ask):
    questions = [QaExample("Is it?", answers=(("yes",),))]
    sure = ask.predict(questions)
    ask.config = dataclasses.replace(ask.config, abstain=1.0)
    unsure = ask.predict(questions)
    ask.config = dataclasses.replace(ask.config, abstain=0.0)
    assert sure[0] in ("yes", "no") and unsure == [""]


def test_names_are_kept_to_an_array(ask):
    from apps.qa.prompts import TEMPLATES, answered, shots_text

    pair = QaExample("Name two", "list", (), (("a", "alpha"), ("b",)))
    assert answered(pair) == "a; b" and answered(pair, "json") == '["a", "b"]'
    assert answered(QaExample("q", answers=(("yes",),)), "json") == "yes"
    assert 'Answer: ["a", "b"]' in shots_text(TEMPLATES["closed"], [pair], 0, "json")
    ask.config = dataclasses.replace(ask.config, answers="json")
    ask.use(corpus=TEXTS)
    result = ask({"question": "Which organ makes bile?", "type": "list"}, max_new_tokens=40)
    ask.config = dataclasses.replace(ask.config, answers="text")
    names = result.text.split("; ")
    assert 1 <= len(names) <= 5 and all(name.strip() for name in names)
    assert not result.text.startswith("[")


def test_every_arm_answers_the_same_questions(ask):
    test, solved = load_data(reader="embedded", split="test"), load_data(reader="embedded")
    test = [example for example in test if example.type == "yesno"]
    before = ask.config
    contexts = ("none", "own", "found", "more")
    arms = list(answer_grid(ask, test, solved, shots=(0, 1), contexts=contexts, more=["An atlas says so."]))
    assert [(context, shots) for context, shots, _ in arms] == [(c, s) for c in contexts for s in (0, 1)]
    assert ask.config == before and all(report.metrics["accuracy"].n == len(test) for *_, report in arms)
    rows = [as_row("base", *arm) for arm in arms]
    assert {row["majority"] for row in rows} == {50.0}
    assert "always the most frequent answer: 50.0" in table(rows)
    # A wrong claim shares as much with the passage of the organ that it is true of, which then comes first.
    assert retrieved(ask, test, [*test, *solved])["map"] == 0.75
    for given, message in ((("nowhere",), "unknown context"), (("more",), "no encyclopedia")):
        with pytest.raises(ConfigError, match=message):
            list(answer_grid(ask, test, solved, shots=(0,), contexts=given))


def test_an_encyclopedia_is_cut_at_sentences(tmp_path):
    file = tmp_path / "wiki.txt"
    file.write_text("One sentence of some words here. " * 40 + "\nA short article.\n")
    found = encyclopedia(file)
    assert found[-1] == "A short article." and all(text.endswith(".") for text in found) and len(found) > 2
    with pytest.raises(DataError, match="file not found"):
        encyclopedia(tmp_path / "none.txt")


def test_the_recipe_writes_the_grid(tmp_path):
    body = tmp_path / "recipe.yaml"
    body.write_text(
        "version: 1\napp: qa\nseed: 1\n"
        f"output: {tmp_path}/run\n"
        "model: {preset: tiny, tokenizer: 'bpe:400', adapters: [{kind: lora, r: 4, targets: all-linear}]}\n"
        "data: {train: [{reader: embedded}], eval: [{reader: embedded, split: test}], max_length: 200}\n"
        "method: qa.grid\nwith: {shots: [0, 1], contexts: [own]}\n"
        "train: {max_steps: 12, lr: 1e-2, batch: {size: 8}}\neval: {every: 0, retention: false}\n"
    )
    from core.config.files import read_json

    loaded = load_recipe(body)
    run = RunFolder.create(loaded)
    assert train(loaded, run)["status"] == "done"
    rows = read_json(run.path / "eval" / "grid.json")
    assert [(r["model"], r["shots"]) for r in rows] == [("base", 0), ("base", 1), ("tuned", 0), ("tuned", 1)]
    loaded.model.adapters, loaded.output = [], str(tmp_path / "other")
    with pytest.raises(ConfigError, match="compares a base with its adapter"):
        train(loaded, RunFolder.create(loaded))
