"""The shared contract; passages, shots, options, and what is sent to the model."""

from __future__ import annotations

import pytest

from apps.qa import QaEvaluator, QaExample, QaPipeline, load_data
from apps.qa.evaluator import Answer
from apps.qa.prompts import TEMPLATES, fields
from core.data.encode import encode
from core.data.segments import render
from core.errors import AppInputError, ConfigError, GraftError
from core.inference.engines.script import ScriptEngine
from tests.apps.contract import PipelineContract


class TestQa(PipelineContract):
    app = "qa"
    inputs = ("Is it so?", "What pumps the blood through the whole body of a man?", "Why not?")
    row = {"question": "Is it so?", "contexts": ["It is."]}
    bad = (
        ({"contexts": ["x"]}, {}, GraftError, "question"),
        ("Is it?", {"typ": "yesno"}, GraftError, "unknown field"),
        ({"question": "many words " * 400}, {}, AppInputError, "too long"),
    )
    golden = (
        ["yes", "no"],
        [{"question": "a", "answers": ["yes"]}, {"question": "b", "answers": ["yes"]}],
        {"accuracy": 50.0, "majority": 100.0},
    )


def asked(config: dict, **use):
    seen = []

    def answer(prompt):
        seen.append(prompt)
        return " the heart\nand more"

    pipeline = QaPipeline(ScriptEngine(answer), None, QaPipeline._config(config)).use(**use)
    return pipeline, seen


def test_passages_are_retrieved_and_cited():
    corpus = ["The kidney filters.", "The heart pumps blood.", "Bile is green."]
    pipeline, seen = asked({"passages": 1}, corpus=corpus)
    result = pipeline("Which organ pumps blood?")
    assert result.text == "the heart" and result.meta["citations"] == [0]
    assert seen[0] == "Context: The heart pumps blood.\nQuestion: Which organ pumps blood?\nAnswer:"


def test_predictions_tell_what_they_cite():
    own = QaExample("Which organ pumps blood?", "factoid", ("The heart pumps blood.", "Bile is green."), (("heart",),))
    pipeline, _ = asked({})
    (found,) = pipeline.predict([own])
    assert found == Answer("the heart", own.contexts[:1], own.contexts)
    report = QaEvaluator(bootstrap=0).score([found], [own])
    assert report.value("citation_precision") == report.value("citation_recall") == report.value("strict") == 100


def test_shots_are_near_of_one_type_and_never_the_question():
    solved = [
        QaExample("Does the heart pump blood?", answers=(("yes",),)),
        QaExample("Is the sky green?", answers=(("no",),)),
        QaExample("What pumps blood?", "factoid", (), (("heart",),)),
        QaExample("Does the liver pump blood?", answers=(("no",),)),
    ]
    pipeline, seen = asked({"template": "closed", "shots": 2}, solved=solved)
    pipeline("Does the heart pump blood?")
    assert seen[0] == (
        "Question: Is the sky green?\nAnswer: no\n\n"
        "Question: Does the liver pump blood?\nAnswer: no\n\n"
        "Question: Does the heart pump blood?\nAnswer:"
    )


def test_training_and_serving_agree():
    from core.data.encode import encode_prompt
    from core.data.segments import prompt_segments
    from core.models.tokenizer import train_bpe

    rows = load_data(reader="embedded")
    tokenizer = train_bpe([f"{r.question} {r.contexts} yes no" for r in rows], 400)
    for row in rows:
        segments = render(TEMPLATES["rag"], fields(row))
        whole = encode(segments, tokenizer)
        prompt = encode_prompt(prompt_segments(segments), tokenizer)
        assert whole.input_ids[: len(prompt)] == prompt
        assert tokenizer.decode(whole.input_ids[len(prompt) : -1]) == f" {row.answer}\n"


def test_an_option_is_always_chosen():
    with QaPipeline.from_pretrained("any", engine="tiny") as pipeline:
        rows = load_data(reader="embedded", split="test")
        found = pipeline.predict(rows, max_new_tokens=4)
    assert all(given in ("yes", "no") for given, row in zip(found, rows) if row.type == "yesno")


def test_shots_that_do_not_fit_are_left_out():
    solved = [QaExample(f"Is number {i} {'very ' * 60}large?", answers=(("yes",),)) for i in range(40)]
    with QaPipeline.from_pretrained("any", engine="tiny", shots=40, template="closed") as pipeline:
        pipeline.use(solved=solved)
        request = pipeline.prepare(QaExample("Is it large?"))
        assert 0 < request.meta["shots"] < 40
        assert len(request.ids) + 16 <= pipeline.engine.context


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_ships(split):
    rows = load_data(reader="embedded", split=split)
    assert len(rows) == (18 if split == "train" else 6)
    other = {r.question for r in load_data(reader="embedded", split="train" if split == "test" else "test")}
    assert not other & {r.question for r in rows}


def test_a_corpus_is_a_list_of_texts():
    ask = QaPipeline.from_pretrained("any", engine="tiny")
    for corpus in ("abc", ["a", None], [""], None, {"a": "b"}, iter(["a"])):
        with pytest.raises(AppInputError, match="no list of texts"):
            ask.use(corpus=corpus)
    with pytest.raises(AppInputError, match="cannot answer int"):
        ask.use(solved=[1])
    assert ask.use(solved=[{"question": "q", "answers": ["yes"]}]).solved == [QaExample("q", answers=(("yes",),))]


@pytest.mark.parametrize("setting", [{"shots": -1}, {"passages": -1}, {"snippets": -1}, {"abstain": 1.5}])
def test_settings_have_bounds(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        QaPipeline.from_pretrained("any", engine="tiny", **setting)
