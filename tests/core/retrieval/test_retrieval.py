"""Lexical, dense and approximate search against plain float64 arithmetic; fusion; folders."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from core.retrieval import AnnIndex, Bm25Index, DenseIndex, Hit, load_index, reciprocal_rank_fusion, weighted_sum
from core.retrieval.words import code, plain

TEXTS = ["the cat sat on the mat", "the dog", "a cat and a dog and a cat", "", "birds sing", "the dog"]
IDS = ["f", "e", "d", "c", "b", "a"]


def bm25_by_hand(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    """One document after the other, one word after the other."""
    words = [plain(text) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for document in words:
        total = 0.0
        for word in sorted(plain(query)):
            holding = sum(word in other for other in words)
            often = document.count(word)
            if not often:
                continue
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            total += idf * often / (often + k1 * (1 - b + b * len(document) / mean))
        scores.append(total)
    return scores


def test_bm25_equals_the_formula():
    index = Bm25Index(IDS, TEXTS)
    for query in ("cat", "the cat dog", "dog dog birds", "sing the mat and"):
        np.testing.assert_allclose(index.scores([query])[0], bm25_by_hand(query, TEXTS, 1.2, 0.75), rtol=1e-12)


def test_bm25_ties_come_in_the_order_of_ids_and_strangers_not_at_all():
    index = Bm25Index(IDS, TEXTS)
    assert [hit.id for hit in index.search(["dog"])[0]] == ["a", "e", "d"]
    assert index.search(["zebra", ""]) == [[], []]
    assert len(index.search(["dog"], k=1)[0]) == 1


def test_bm25_on_random_cases_equals_brute_force():
    random = np.random.default_rng(0)
    letters = [chr(97 + i) * 2 for i in range(12)]
    for _ in range(40):
        texts = [" ".join(random.choice(letters, random.integers(1, 9))) for _ in range(50)]
        ids = [str(i) for i in random.permutation(50)]
        index = Bm25Index(ids, texts, k1=float(random.uniform(0, 2)), b=float(random.uniform(0, 1)))
        for _ in range(5):
            query = " ".join(random.choice(letters, random.integers(1, 5)))
            scores = bm25_by_hand(query, texts, index.k1, index.b)
            wanted = sorted((i for i in range(50) if scores[i] > 0), key=lambda i: (-round(scores[i], 10), ids[i]))[:10]
            found = index.search([query])[0]
            np.testing.assert_allclose([hit.score for hit in found], [scores[i] for i in wanted], rtol=1e-10)


def test_words():
    assert plain("It's Über-cool, snake_case!") == ["it's", "über", "cool", "snake", "case"]
    assert code("getHTTPStatus_v2 fooBar") == ["get", "http", "status", "v", "2", "foo", "bar"]


def by_float64(vectors: np.ndarray, queries: np.ndarray, ids: list[str], k: int, metric: str):
    v, q = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        q = q / np.sqrt((q * q).sum(1, keepdims=True))
    wanted = []
    for query in q:
        scores = (v * query).sum(1)
        if metric == "cosine":
            scores = scores / np.sqrt((v * v).sum(1))
        order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:k]
        wanted.append([ids[i] for i in order])
    return wanted


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("block", [7, 64, 1000])
def test_dense_equals_float64_with_ties(metric, block):
    random = np.random.default_rng(block)
    for trial in range(12):
        vectors = random.normal(size=(200, 16)).astype(np.float32)
        if trial % 2:
            vectors = np.round(vectors)
            vectors[(vectors == 0).all(1)] = 1
        vectors[random.integers(0, 200, 60)] = vectors[3]
        ids = [f"d{i}" for i in random.permutation(200)]
        queries = np.concatenate([random.normal(size=(8, 16)), vectors[3:4]]).astype(np.float32)
        found = DenseIndex(ids, vectors, metric=metric, block=block).search(queries, 10)
        assert [[hit.id for hit in row] for row in found] == by_float64(vectors, queries, ids, 10, metric)


def test_dense_tells_apart_what_float32_cannot():
    near = np.ones((300, 8), dtype=np.float64)
    near[:, 0] += np.arange(300) * 1e-12
    query = np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]])
    ids = [f"{i:03d}" for i in range(300)]
    found = DenseIndex(ids, near, metric="dot").search(query, 5)[0]
    assert [hit.id for hit in found] == ["299", "298", "297", "296", "295"]


def test_dense_refuses_what_does_not_fit():
    index = DenseIndex(["a", "b"], np.eye(2, 3, dtype=np.float32))
    with pytest.raises(DataError, match="4 dimensions, the index has 3"):
        index.search(np.ones((1, 4)))
    with pytest.raises(DataError, match="4 dimensions"):
        index.add(["c"], np.ones((1, 4)))
    with pytest.raises(DataError, match="'a' stands"):
        index.add(["a"], np.ones((1, 3)))
    with pytest.raises(DataError, match="zero or not finite"):
        DenseIndex(["a", "b"], np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(DataError, match="zero or not finite"):
        index.search(np.array([[np.nan, 0, 0]]))
    with pytest.raises(DataError, match="from 1 on"):
        index.search(np.ones((1, 3)), 0)
    index.add(["c"], np.ones((1, 3)))
    assert [hit.id for hit in index.search(np.ones((1, 3)))[0]] == ["c", "a", "b"]


def test_bad_settings_are_named():
    with pytest.raises(DataError, match="no documents"):
        Bm25Index([], [])
    with pytest.raises(ConfigError, match="k1"):
        Bm25Index(["a"], ["b"], k1=-1)
    with pytest.raises(ConfigError, match="plain"):
        Bm25Index(["a"], ["b"], words="plane")
    with pytest.raises(DataError, match="list of queries"):
        Bm25Index(["a"], ["b"]).search("b")


def test_rank_fusion_by_hand():
    first, second = [Hit("a", 9.0), Hit("b", 5.0)], [Hit("b", 0.3), Hit("c", 0.2)]
    fused = reciprocal_rank_fusion([first, second])
    assert [hit.id for hit in fused] == ["b", "a", "c"]
    assert fused[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert [h.id for h in reciprocal_rank_fusion([first, second], weights=[0, 1])][:2] == ["b", "c"]
    assert [h.id for h in weighted_sum([first, second], weights=[0.6, 0.4])] == ["a", "b", "c"]
    with pytest.raises(DataError, match="1 weights for 2 rankings"):
        weighted_sum([first, second], weights=[1])


def on_disk(array) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize("kind", ["bm25", "dense", "hnsw", "ivf"])
def test_an_index_reloads_memory_mapped_with_equal_answers(kind, tmp_path):
    random = np.random.default_rng(1)
    if kind == "bm25":
        index, queries = Bm25Index(IDS, TEXTS), ["cat dog", "the"]
    else:
        vectors, queries = random.normal(size=(300, 12)).astype(np.float32), random.normal(size=(4, 12))
        ids = [str(i) for i in range(300)]
        if kind == "dense":
            index = DenseIndex(ids, vectors)
        else:
            pytest.importorskip("faiss")
            index = AnnIndex(ids, vectors, structure=kind, effort=16)
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index")
    assert type(again) is type(index)
    assert again.search(queries) == index.search(queries)
    assert on_disk(again.weights.data if kind == "bm25" else again.vectors)
    assert not list(tmp_path.glob(".*"))


def test_approximate_search_finds_most_and_effort_buys_recall():
    pytest.importorskip("faiss")
    random = np.random.default_rng(2)
    vectors, queries = random.normal(size=(2000, 16)).astype(np.float32), random.normal(size=(30, 16))
    index = AnnIndex([str(i) for i in range(2000)], vectors, structure="ivf", effort=1)
    low = index.recall(queries)
    index.effort = 44
    assert low < 0.9 < index.recall(queries)


def test_a_folder_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(DataError, match="no index here"):
        load_index(tmp_path)
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(DataError, match="taken"):
        Bm25Index(["a"], ["b"]).save(tmp_path)
    Bm25Index(["a"], ["b"]).save(tmp_path / "i")
    (tmp_path / "i" / "ids.json").write_text("[]")
    with pytest.raises(DataError, match="torn"):
        load_index(tmp_path / "i")
