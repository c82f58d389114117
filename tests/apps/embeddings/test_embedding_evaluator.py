"""Search metrics against trec_eval, correlations against scipy, and what the evaluator refuses or skips."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apps.embeddings import ranking
from apps.embeddings.data import READERS, load_data
from apps.embeddings.evaluator import EmbeddingEvaluator
from apps.embeddings.example import EmbeddingExample, example_from, to_jsonl
from core.errors import ConfigError, DataError, GraftError


def test_metrics_equal_trec_eval_with_ties():
    trec = pytest.importorskip("pytrec_eval")
    random = np.random.default_rng(0)
    names = [f"d{i}" for i in range(40)]
    measures = {"ndcg_cut_10", "recall_100", "map", "recip_rank"}
    for _ in range(200):
        run = {
            n: float(np.float32(random.integers(0, 6) / 3 + random.normal() * 1e-9)) for n in random.permutation(names)
        }
        judged = {n: int(g) for n, g in zip(random.permutation(names)[:12], random.integers(0, 4, 12))}
        if not any(judged.values()):
            continue
        theirs = trec.RelevanceEvaluator({"q": judged}, measures).evaluate({"q": run})["q"]
        order = ranking.ordered(run.items())
        assert ranking.ndcg(order, judged) == pytest.approx(theirs["ndcg_cut_10"], abs=1e-9)
        assert ranking.recall(order, judged) == pytest.approx(theirs["recall_100"], abs=1e-9)
        assert ranking.average_precision(order, judged) == pytest.approx(theirs["map"], abs=1e-9)
        assert ranking.reciprocal_rank(order, judged, None) == pytest.approx(theirs["recip_rank"], abs=1e-9)


def test_reciprocal_rank_stops_at_the_cut():
    order = [f"d{i}" for i in range(20)]
    assert ranking.reciprocal_rank(order, {"d10": 1.0}) == 0
    assert ranking.reciprocal_rank(order, {"d9": 1.0}) == pytest.approx(0.1)


def test_golden_figures():
    examples = [
        EmbeddingExample("doc", id="a"),
        EmbeddingExample("doc2", id="b"),
        EmbeddingExample("query", relevant=(("b", 1.0),), id="q"),
        EmbeddingExample("one", text2="two", score=0.2),
        EmbeddingExample("one", text2="three", score=0.9),
        EmbeddingExample("one", text2="four", score=0.5),
    ]
    predictions = [None, None, [["a", 0.9], ["b", 0.8]], 0.1, 0.9, 0.3]
    report = EmbeddingEvaluator(bootstrap=0).score(predictions, examples)
    assert report.value("ndcg@10") == pytest.approx(100 / np.log2(3))
    assert report.value("mrr@10") == 50 and report.value("map") == 50 and report.value("recall@100") == 100
    assert report.value("spearman") == pytest.approx(100)
    assert report.metrics["accuracy"].skipped and report.primary == "ndcg@10"
    assert len(report.rows) == len(examples)


def test_labelled_texts_are_classified_and_clustered():
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 8)) * 4
    examples = [EmbeddingExample(f"t{i}", label=str(i % 3)) for i in range(90)]
    apart = [(centres[i % 3] + random.normal(size=8) * 0.3).tolist() for i in range(90)]
    noise = random.normal(size=(90, 8)).tolist()
    good, bad = (EmbeddingEvaluator(["accuracy", "v_measure"]).score(v, examples) for v in (apart, noise))
    assert good.value("accuracy") == 100 and good.value("v_measure") > 99 and good.primary == "accuracy"
    assert bad.value("accuracy") < 50 and bad.value("v_measure") < 20


def test_same_id_is_left_out_when_asked():
    examples = [EmbeddingExample("x", relevant=(("b", 1.0),), id="a")]
    run = [[["a", 1.0], ["b", 0.5]]]
    assert EmbeddingEvaluator(["mrr@10"]).score(run, examples).value("mrr@10") == 100
    assert EmbeddingEvaluator(["mrr@10"], same_id=False).score(run, examples).value("mrr@10") == 50


def test_wrong_predictions_are_refused():
    pair = [EmbeddingExample("a", text2="b", score=0.5)]
    with pytest.raises(DataError, match="prediction 0 does not fit a pair"):
        EmbeddingEvaluator().score([[1, 2]], pair)
    with pytest.raises(DataError, match="example 0 has no partner"):
        EmbeddingEvaluator().score([], pair)
    with pytest.raises(GraftError, match="ndcg@10"):
        EmbeddingEvaluator(["ndcg"])


QUERY = EmbeddingExample("q", relevant=(("d1", 1.0),), id="q1")


@pytest.mark.parametrize(
    ("example", "prediction"),
    [
        (EmbeddingExample("a", text2="b", score=0.5), float("nan")),
        (EmbeddingExample("a", text2="b", score=0.5), True),
        (QUERY, ["d1"]),
        (QUERY, [["d1", None]]),
        (QUERY, [["d1", float("nan")]]),
        (QUERY, [["d1", 1.0, 2.0]]),
        (QUERY, [["d1", 1.0], ["d1", 0.5]]),  # counted twice, it would be worth more than 100
        (EmbeddingExample("a", label="x"), [1.0, float("nan")]),
        (EmbeddingExample("a", label="x"), ["x"]),
        (EmbeddingExample("a", label="x"), []),
        (EmbeddingExample("a", label="x"), [[1.0], [1.0, 2.0]]),
    ],
)
def test_what_is_no_prediction_is_named(example, prediction):
    with pytest.raises(DataError, match="prediction 0 does not fit"):
        EmbeddingEvaluator().score([prediction], [example])


def test_vectors_are_of_one_length():
    examples = [EmbeddingExample("a", label="x"), EmbeddingExample("b", label="y")]
    with pytest.raises(DataError, match="different lengths"):
        EmbeddingEvaluator().score([[1.0], [1.0, 2.0]], examples)
    with pytest.raises(ConfigError, match="shots=0"):
        EmbeddingEvaluator(shots=0)


def test_a_judged_document_that_is_not_there_is_no_miss():
    examples = [QUERY, EmbeddingExample("a", id="d2")]
    with pytest.raises(DataError, match="1 judgements name documents that are not among the examples: d1"):
        EmbeddingEvaluator().score([[["d2", 1.0]], None], examples)
    assert EmbeddingEvaluator().score([[["d2", 1.0]]], [QUERY]).value("ndcg@10") == 0


# ---- readers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"txt": "a"}, "text"),
        ({"text": " "}, "not empty"),
        ({"text": "a", "score": 3}, "from 0 to 1"),
        ({"text": "a", "pos": [""]}, "texts that are not empty"),
        ({"text": "a", "relevant": {"d": -1}}, "grade"),
        ({"text": "a", "relevant": 5}, "grade"),
        ({"text": "a", "relevant": [1]}, "grade"),
        ({"text": "a", "score": True}, "from 0 to 1"),
        ({"text": "a", "id": {"b": 1}}, "a text or a number"),
        ({"text": "a", "label": ["b"]}, "a text or a number"),
        ({"text": "a", "query": "b"}, "two names"),
        (["a"], "not an object"),
    ],
)
def test_bad_rows_say_file_and_line(row, part, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=part) as caught:
        load_data(file)
    assert "rows.jsonl:2" in str(caught.value)


def test_jsonl_round_trip(tmp_path):
    examples = [
        EmbeddingExample("q", pos=("a", "b"), neg=("c",), task="t"),
        EmbeddingExample("s", text2="t", score=0.25),
        EmbeddingExample("x", label="l"),
        EmbeddingExample("d", id="1"),
        EmbeddingExample("q", relevant=(("1", 2.0),), id="q"),
    ]
    (tmp_path / "r.jsonl").write_text(to_jsonl(examples))
    assert load_data(tmp_path / "r.jsonl") == examples
    assert example_from({"query": "q", "pos": "a"}).pos == ("a",)
    assert [e.kind for e in examples] == ["triplet", "pair", "labelled", "document", "query"]


def beir_folder(tmp_path, extra: str = ""):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "1", "title": "T", "text": "one"}\n{"_id": "2", "text": "two"}\n{"_id": "3", "text": "three"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "first?"}\n{"_id": "q2", "text": "unjudged"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t2\nq1\t2\t0\n" + extra)
    return tmp_path


def test_beir(tmp_path):
    rows = load_data(beir_folder(tmp_path), "beir", split="test")
    assert [(r.id, r.text) for r in rows] == [("1", "T one"), ("2", "two"), ("3", "three"), ("q1", "first?")]
    assert rows[-1].relevant == (("1", 2.0), ("2", 0.0))
    (triplet,) = load_data(tmp_path, "beir", split="test", triplets=True)
    assert triplet.pos == ("T one",)


def test_judgements_of_missing_documents_name_the_first_five(tmp_path):
    with pytest.raises(DataError, match="7 judgements name documents that are not there: m0, m1, m2, m3, m4"):
        load_data(beir_folder(tmp_path, "".join(f"q1\tm{i}\t1\n" for i in range(7))), "beir", split="test")


@pytest.mark.parametrize(
    ("file", "line", "where", "part"),
    [
        ("corpus.jsonl", '{"_id": "1", "text": "other"}', "corpus.jsonl:4", "stands twice"),
        ("corpus.jsonl", '{"_id": null, "text": "x"}', "corpus.jsonl:4", "needs _id"),
        ("corpus.jsonl", '{"_id": "9", "text": ["x"]}', "corpus.jsonl:4", "needs _id"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}', "queries.jsonl:3", "stands twice"),
        ("queries.jsonl", '{"_id": "q9", "text": " "}', "queries.jsonl:3", "empty"),
        ("queries.jsonl", '{"text": "x"}', "queries.jsonl:3", "needs _id"),
        ("qrels/test.tsv", "q1\t2\tgood", "test.tsv:4", "query, document, grade"),
        ("qrels/test.tsv", "q1\t2\tnan", "test.tsv:4", "query, document, grade"),
        ("qrels/test.tsv", "q1 0 2 1", "test.tsv:4", "query, document, grade"),
        ("qrels/test.tsv", "q9\t2\t1", "test.tsv", "name queries that are not there: q9"),
    ],
)
def test_a_line_that_spoils_a_collection_is_named(file, line, where, part, tmp_path):
    place = beir_folder(tmp_path) / file
    place.write_text(place.read_text() + line + "\n")
    with pytest.raises(DataError, match=part) as caught:
        load_data(tmp_path, "beir", split="test")
    assert where in str(caught.value)


def test_judgements_without_a_header_and_none_at_all(tmp_path):
    file = beir_folder(tmp_path) / "qrels" / "test.tsv"
    file.write_text("\nq1\t1\t2\n\n")
    assert load_data(tmp_path, "beir", split="test")[-1].relevant == (("1", 2.0),)
    for first in ("", "query-id\tcorpus-id\tscore\n"):
        file.write_text(first)
        with pytest.raises(DataError, match="no judgements"):
            load_data(tmp_path, "beir", split="test")


def test_tables_that_are_none(tmp_path):
    pairs, labels = tmp_path / "p.csv", tmp_path / "l.csv"
    pairs.write_text("\ufeffa,b,4\n", encoding="utf-8")  # as spreadsheets write it
    assert load_data(pairs, "sts")[0].text == "a"
    for arguments in ({"columns": [0, 1]}, {"columns": "abc"}, {"top": 0}):
        with pytest.raises(DataError, match="three places of columns"):
            load_data(pairs, "sts", **arguments)
    with pytest.raises(DataError, match="a number in 1"):
        load_data(pairs, "sts", columns=[0, 2, 1])
    labels.write_text("text,category\na,x\nb,y\n")
    for folds in (1, 5):
        with pytest.raises(DataError, match="too few texts for the folds"):
            load_data(labels, "labels", fold=0, folds=folds)


def test_a_smart_folder_is_of_one_release(tmp_path):
    (tmp_path / "x.ALL").write_text(".I 1\n.T\nt\n.W\nw\n.I 2\n.T\n.W\n")
    (tmp_path / "x.qry").write_text(".I 1\n.W\nq\n")
    judgements = tmp_path / "qrels"
    judgements.write_text("1 1 -1\n1 2 1\n")  # document 2 has no text
    assert load_data(tmp_path, "smart")[-1].relevant == (("1", 0.0),)
    for line, part in (("1 77 1", "not there: 77"), ("1 1 x", "no number")):
        judgements.write_text(line + "\n")
        with pytest.raises(DataError, match=part):
            load_data(tmp_path, "smart")
    with pytest.raises(DataError, match="no folder"):
        load_data(judgements, "smart")


def test_tables(tmp_path):
    (tmp_path / "x-train.csv").write_text('"a, b",c,2.5\nd,e,nonsense\n')
    with pytest.raises(DataError, match="no graded pair"):
        load_data(tmp_path, "sts", split="train")
    (tmp_path / "x-train.csv").write_text('"a, b",c,2.5\n')
    (row,) = load_data(tmp_path, "sts", split="train")
    assert (row.text, row.text2, row.score) == ("a, b", "c", 0.5)
    (tmp_path / "l.csv").write_text("text,category\n" + "".join(f"t{i},{i % 2}\n" for i in range(20)))
    everything = load_data(tmp_path / "l.csv", "labels")
    held = [load_data(tmp_path / "l.csv", "labels", split="test", fold=f) for f in range(5)]
    kept = load_data(tmp_path / "l.csv", "labels", split="train", fold=0)
    assert sorted(r.text for part in held for r in part) == sorted(r.text for r in everything)
    assert {r.text for r in kept} == {r.text for r in everything} - {r.text for r in held[0]}
    with pytest.raises(DataError, match="no column 'label'"):
        load_data(tmp_path / "l.csv", "labels", label="label")


def test_smart_reads_cisi(shared_data):
    rows = load_data(shared_data / "embeddings" / "cisi", "smart")
    documents = [r for r in rows if r.kind == "document"]
    assert len(documents) == 1460 and documents[0].text.startswith("18 Editions of the Dewey Decimal")
    assert "1\t5\t1" not in documents[0].text
    queries = [r for r in rows if r.kind == "query"]
    assert sum(len(q.relevant) for q in queries) == 2154


def test_what_ships_is_whole():
    for name in READERS.names():
        if name.startswith("embedded"):
            rows = list(READERS.get(name)(None))
            assert len(rows) >= 96 and len(set(rows)) == len(rows)
    held = {r.text for r in load_data(reader="embedded", split="test") if r.kind == "query"}
    assert len(held) == 48 and not held & {r.text for r in load_data(reader="embedded")}
