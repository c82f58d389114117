"""Search metrics against trec_eval, correlations against scipy, and what the evaluator refuses or skips."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apps.embeddings import ranking
from apps.embeddings.data import READERS, load_data
from apps.embeddings.evaluator import EmbeddingEvaluator
from apps.embeddings.example import EmbeddingExample, example_from, to_jsonl
from core.errors import DataError, GraftError


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


# ---- readers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"txt": "a"}, "text"),
        ({"text": " "}, "not empty"),
        ({"text": "a", "score": 3}, "from 0 to 1"),
        ({"text": "a", "pos": [""]}, "texts that are not empty"),
        ({"text": "a", "relevant": {"d": -1}}, "grade"),
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
    with pytest.raises(DataError, match="7 judgements name documents that are not in corpus.jsonl: m0, m1, m2, m3, m4"):
        load_data(beir_folder(tmp_path, "".join(f"q1\tm{i}\t1\n" for i in range(7))), "beir", split="test")


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
