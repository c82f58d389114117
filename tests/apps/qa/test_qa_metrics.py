"""Twenty questions worked by hand, and the readers' checks."""

from __future__ import annotations

import json
import math

import pytest

from apps.qa import QaEvaluator, QaExample, load_data
from apps.qa import metrics as field
from apps.qa.data import example_from
from apps.qa.evaluator import Answer, candidates, decided
from core.errors import DataError


def yesno(answer, *options):
    return QaExample("q", "yesno", (), ((answer,),), options or ("yes", "no"))


def test_twenty_questions_by_hand():
    examples = [
        # Seven yes-no questions: five right. yes: P 3/4, R 3/4; no: P 2/3, R 2/3 (one answer is no option at all).
        *[yesno(a) for a in ("yes", "yes", "yes", "no", "no", "yes", "no")],
        # Six factoids: ranks 1, 2, none, 1, 5, 6.
        *[QaExample("q", "factoid", (), (("insulin", "the hormone insulin"),)) for _ in range(6)],
        # Four lists of two or three items.
        QaExample("q", "list", (), (("a", "alpha"), ("b",))),
        QaExample("q", "list", (), (("a",), ("b",), ("c",))),
        QaExample("q", "list", (), (("a",), ("b",))),
        QaExample("q", "list", (), (("a",), ("b",))),
        # Three ideal answers.
        *[QaExample("q", "summary", (), (("the cat sat on the mat",),)) for _ in range(3)],
    ]
    predictions = [
        "yes", "Yes, it does.", "no", "no", "yes", "yes.", "no",
        "Insulin", ["glucose", "insulin"], "glucose", "The hormone, insulin", ["a", "b", "c", "d", "insulin"],
        ["a", "b", "c", "d", "e", "insulin"],
        "alpha; b", "a; x", "x; y", ["a", "A.", "b", "the a"],
        "the cat sat on the mat", "the cat ran", "dogs bark",
    ]  # fmt: skip
    report = QaEvaluator(bootstrap=0).score(predictions, examples)
    wanted = {
        "accuracy": 5 / 7,
        "macro_f1": (3 / 4 + 2 / 3) / 2,
        "majority": 4 / 7,
        "answered": 7 / 7,
        "accuracy_answered": 5 / 7,
        "strict": 2 / 6,
        "lenient": 4 / 6,
        "mrr": (1 + 1 / 2 + 0 + 1 + 1 / 5 + 0) / 6,
        "list_precision": (1 + 1 / 2 + 0 + 1) / 4,
        "list_recall": (1 + 1 / 3 + 0 + 1) / 4,
        "list_f1": (1 + 2 / 5 + 0 + 1) / 4,
        "rouge2_recall": (1 + 1 / 5 + 0) / 3,
        "rouge2_f1": (1 + 2 / (2 + 5) + 0) / 3,
        # 15 skip pairs within four words and 6 words: of "the cat ran" the pair and two words match.
        "rouge_su4_recall": (1 + 3 / 21 + 0) / 3,
        "rouge_su4_f1": (1 + 2 * 3 / (21 + 6) + 0) / 3,
    }
    for name, value in wanted.items():
        assert report.value(name) == pytest.approx(100 * value), name
    assert report.primary == "accuracy" and len(report.rows) == 20


def test_who_abstains_answers_fewer_and_these_better():
    report = QaEvaluator(bootstrap=0).score(
        ["yes", "", "no", "perhaps"], [yesno(a) for a in ("yes", "yes", "yes", "no")]
    )
    values = {name: report.value(name) for name in ("accuracy", "answered", "accuracy_answered")}
    assert values == {"accuracy": 25.0, "answered": 50.0, "accuracy_answered": 50.0}
    nothing = QaEvaluator(bootstrap=0).score([""], [yesno("yes")])
    assert "abstained from every question" in nothing.metrics["accuracy_answered"].skipped


def test_names_are_compared_without_articles_and_marks():
    assert field.plain("The  Hormone, (insulin)!") == "hormone insulin"
    assert candidates(" a ;b; ") == ["a", "b"] and candidates(["x"]) == ["x"]
    assert decided("Maybe so", yesno("yes", "yes", "no", "maybe")) == "maybe" and decided("nothing", yesno("no")) == ""


def test_documents_by_hand():
    assert field.average_precision(["a", "x", "b"], {"a", "b", "c"}) == pytest.approx((1 + 2 / 3) / 3)
    many = {f"d{i}" for i in range(30)}
    assert field.average_precision([f"d{i}" for i in range(30)], many) == 1.0
    assert field.average_precision(["a"], set()) == 0.0
    assert field.geometric_mean([0.0, 1.0]) == pytest.approx(math.sqrt(0.01 * 1.01))


def test_readers(tmp_path, shared_data):
    rows = load_data(shared_data / "biomed" / "pubmedqa" / "labeled.jsonl", "pubmedqa")
    assert len(rows) == 494
    assert sum(r.answer == "yes" for r in rows) == 281 and {r.answer for r in rows} == {"yes", "no", "maybe"}
    assert (
        rows[0].question == "Do mitochondria play a role in remodelling lace plant leaves during programmed cell death?"
    )
    parts = [load_data(shared_data / "biomed" / "pubmedqa" / "labeled.jsonl", "pubmedqa", split=s)
             for s in ("train", "dev", "test")]  # fmt: skip
    names = [row.id for part in parts for row in part]
    assert len(names) == len(set(names)) == 494


def test_bioasq(tmp_path):
    questions = [
        {"id": "1", "body": "Is it?", "type": "yesno", "exact_answer": "Yes", "snippets": [{"text": "s"}]},
        {"id": "2", "body": "Which?", "type": "factoid", "exact_answer": ["insulin", "the insulin"]},
        {"id": "3", "body": "Which ones?", "type": "list", "exact_answer": [["a", "alpha"], ["b"]]},
        {"id": "4", "body": "Why?", "type": "summary", "ideal_answer": ["Because."]},
    ]
    (tmp_path / "b.json").write_text(json.dumps({"questions": questions}))
    rows = load_data(tmp_path / "b.json", "bioasq")
    assert rows[0].answers == (("yes",),) and rows[0].contexts == ("s",)
    assert rows[1].answers == (("insulin", "the insulin"),) and rows[2].answers == (("a", "alpha"), ("b",))
    assert rows[3].answer == "Because."
    (tmp_path / "b.json").write_text('{"questions": [{"body": "x"}]}')
    with pytest.raises(DataError, match="no question of BioASQ"):
        load_data(tmp_path / "b.json", "bioasq")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(DataError, match="not BioASQ"):
        load_data(tmp_path / "b.json", "bioasq")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": ""}, "not empty"),
        ({"question": "q", "type": "essay"}, "yesno, factoid"),
        ({"question": "q", "answers": ["perhaps"]}, "one of yes, no"),
        ({"question": "q", "context": "c"}, "unknown field"),
        ({"question": "q", "contexts": "c"}, "list of texts"),
    ],
)
def test_bad_rows_say_where(row, part, tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=part) as caught:
        load_data(tmp_path / "r.jsonl")
    assert "r.jsonl:1" in str(caught.value)


HEART, BLOOD, BILE = "The heart pumps blood.", "Blood is pumped by the Heart-muscle.", "Bile is made in the liver."


@pytest.mark.parametrize(
    "cited, shown, items, precision, recall",
    [
        ([HEART], [HEART, BILE], [("heart",)], 1, 1),
        ([HEART, BILE], [HEART, BILE], [("heart",)], 1 / 2, 1),
        ([HEART, HEART, BILE], [HEART, BILE], [("heart",)], 1 / 2, 1),
        ([BILE], [HEART, BLOOD, BILE], [("cor", "heart")], 0, 0),
        ([BLOOD], [HEART, BLOOD], [("cor", "the heart")], 1, 1),
        ([], [HEART], [("heart",)], None, 0),
        ([BILE], [BILE], [("heart",)], 0, None),
        ([HEART], [HEART, BILE], [("heart",), ("liver",), ("spleen",)], 1, 1 / 2),
        (["Hearts are many."], [HEART], [("heart",)], 0, 0),
        ([], [], [("heart",)], None, None),
    ],
)
def test_citations_by_hand(cited, shown, items, precision, recall):
    assert field.citations(cited, shown, items) == (precision, recall)


def test_citations_are_judged_where_answers_tell_them():
    asked = QaExample("What pumps?", "factoid", (HEART, BILE), (("heart",),))
    several = QaExample("Which organs?", "list", (HEART, BILE), (("heart",), ("liver",)))
    predictions = [
        Answer("heart", (HEART, BILE)),
        {"answer": ["liver"], "cited": [BILE]},
        {"answer": "heart", "cited": [], "shown": [BILE]},
        "heart",
        Answer("yes", (BILE,)),
    ]
    report = QaEvaluator(bootstrap=0).score(predictions, [asked, several, asked, asked, yesno("yes")])
    assert report.value("citation_precision") == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert report.value("citation_recall") == pytest.approx(100 * (1 + 1 / 2) / 2)
    assert report.metrics["citation_recall"].n == 2 and report.rows[1]["cited"] == [BILE]
    assert report.value("strict") == 100 and report.value("accuracy") == 100
    assert [row["prediction"] for row in report.rows][:2] == ["heart", ["liver"]]
    untold = QaEvaluator(bootstrap=0).score(["heart"], [asked])
    assert "tells what it cites" in untold.metrics["citation_precision"].skipped
    for wrong in ({"cited": []}, {"answer": "x", "cited": "text"}, {"answer": "x", "cites": []}):
        with pytest.raises(DataError, match="prediction 0"):
            QaEvaluator().score([wrong], [asked])


@pytest.mark.parametrize(
    ("options", "said", "wanted"),
    [
        (("YES", "NO"), "Yes, it does", "YES"),
        (("yes", "not sure"), "Not sure.", "not sure"),
        (("yes", "yes and no"), "yes and no", "yes and no"),
        (("A", "B"), "A", "A"),
        (("yes", "no"), "nothing of that", ""),
    ],
)
def test_an_option_is_told_word_by_word_whatever_its_case(options, said, wanted):
    assert decided(said, QaExample("?", options=options)) == wanted


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"answers": 5}, "synonyms"),
        ({"answers": [5]}, "synonyms"),
        ({"type": "factoid", "answers": [None]}, "synonyms"),
        ({"type": "factoid", "answers": [["a", ""]]}, "synonyms"),
        ({"options": "yes"}, "a list of words"),
        ({"options": [1]}, "a list of words"),
        ({"options": 5}, "a list of words"),
        ({"question": "\ud800"}, "half a character"),
        ({"contexts": ["\ud800"]}, "half a character"),
    ],
)
def test_fields_of_another_kind_are_named(fields, part):
    with pytest.raises(DataError, match=part):
        example_from({"question": "q", **fields})


@pytest.mark.parametrize("questions", [5, {}, None, [5], [{}], [{"body": "b", "type": "factoid", "exact_answer": 5}]])
def test_what_is_not_bioasq_is_said_in_its_words(questions, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps({"questions": questions}))
    with pytest.raises(DataError, match="BioASQ"):
        load_data(tmp_path / "b.json", "bioasq")
