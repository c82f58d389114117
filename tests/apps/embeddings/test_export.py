"""Bytes and bits: what the codes stand for, how much of a search they keep, folders."""

from __future__ import annotations

import numpy as np
import pytest

from apps.embeddings.export import CodedIndex, coded, table
from core.errors import ConfigError, DataError


def vectors(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_a_byte_is_within_half_a_step():
    given = vectors(100)
    codes = coded(given, "int8")
    assert codes.values.dtype == np.int8 and np.abs(codes.to_float() - given).max() <= codes.step.max() / 2 + 1e-6


def test_codes_are_those_of_the_library():
    from sentence_transformers.util.quantization import quantize_embeddings

    given = vectors(50)
    bits = quantize_embeddings(given, precision="ubinary")
    assert np.array_equal(coded(given, "binary").values, bits)
    theirs = quantize_embeddings(given, precision="int8", calibration_embeddings=given)
    assert np.abs(coded(given, "int8").values.astype(int) - theirs.astype(int)).max() <= 1


def test_bits_stand_for_signs():
    given = vectors(5)
    assert np.array_equal(coded(given, "binary").to_float(), np.where(given > 0, 1, -1))


@pytest.mark.parametrize(("precision", "least", "size"), [("int8", 0.95, 64), ("binary", 0.3, 8)])
def test_search_keeps_most(precision, least, size, tmp_path):
    documents, queries = vectors(500), vectors(20, 1)
    index = CodedIndex([str(i) for i in range(500)], coded(documents, precision))
    assert index.bytes == 500 * size
    (row,) = [r for r in table(documents, queries) if r["format"] == precision]
    assert row["kept"] >= least and row["bytes"] == size
    index.save(tmp_path / "i")
    assert CodedIndex.load(tmp_path / "i").search(queries) == index.search(queries)
    with pytest.raises(DataError, match="32 dimensions"):
        index.search(queries[:, :32])


def test_fewer_dimensions_cost_and_whole_ones_do_not():
    rows = {(r["format"], r["dimensions"]): r["kept"] for r in table(vectors(300), vectors(20, 1), sizes=(8,))}
    assert rows["float32", 64] == 1 and rows["float32", 8] < 0.6


def test_unknown_formats_are_named():
    with pytest.raises(ConfigError, match="int8 or binary"):
        coded(vectors(3), "int4")
    with pytest.raises(DataError, match="no vectors"):
        coded(vectors(0), "int8")


@pytest.mark.parametrize(
    ("vectors", "calibration"),
    [(np.ones(4), None), (np.ones((2, 4)), np.ones((2, 3))), (np.full((2, 4), np.nan), None), (np.ones((0, 4)), None)],
)
def test_what_is_no_table_of_vectors_is_refused(vectors, calibration):
    with pytest.raises(DataError, match="vectors"):
        coded(vectors, "int8", calibration)


def test_one_query_is_a_table_of_one():
    vectors = np.eye(4, dtype=np.float32)
    index = CodedIndex(list("abcd"), coded(vectors, "int8"))
    assert index.search(vectors[1], 1) == index.search(vectors[1:2], 1)
