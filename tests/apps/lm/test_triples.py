"""Word graphs as text: the sentence of a triple, what is left out, what is refused, splits that part everything."""

from __future__ import annotations

import json

import pytest

from core.config.registry import get_app
from core.data.rows import BadRows
from core.errors import DataError


def read(path, policy="raise", rejects=None, **more):
    bad = BadRows(policy, rejects)
    return [row.text for row in get_app("lm").readers.get("triples")(str(path), on_bad=bad, **more)], bad


def test_a_triple_is_a_sentence(tmp_path):
    file = tmp_path / "graph.tsv"
    file.write_text("kucing\tIsA\tkewan\nkewan\tIsA\tkewan\nkucing\tIsA\tkewan\nbanyu\tHasProperty\tteles\n\n")
    assert sorted(read(file)[0]) == ["banyu can be described as teles.", "kucing is a kind of kewan."]


def test_conceptnets_own_table_by_language(tmp_path):
    edge = "/a/[x]\t/r/{}\t/c/{}/{}\t/c/{}/{}\t{}\n"
    rows = [
        edge.format("RelatedTo", "jv", "omah_gedhe/n", "jv", "griya", "{}"),
        edge.format("Synonym", "jv", "omah", "en", "house", "{}"),
        edge.format("ExternalURL", "jv", "omah", "jv", "x", "{}"),
    ]
    file = tmp_path / "assertions.csv"
    file.write_text("".join(rows))
    assert read(file, lang="jv")[0] == ["omah gedhe has to do with griya."]
    assert len(read(file)[0]) == 2


def test_what_is_no_triple_is_told_or_counted(tmp_path):
    file, rejects = tmp_path / "graph.tsv", tmp_path / "rejects.jsonl"
    file.write_text("a\tIsAn\tb\na\tb\na\tIsA\t \nc\tIsA\td\n")
    with pytest.raises(DataError, match=r"unknown relation 'IsAn'.*IsA"):
        read(file)
    found, bad = read(file, "skip", rejects)
    assert found == ["c is a kind of d."] and bad.count == 3
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [1, 2, 3]
    with pytest.raises(DataError, match="split"):
        read(file, "skip", split="valid")


def test_splits_part_the_graph_and_are_always_the_same(tmp_path):
    file = tmp_path / "graph.tsv"
    file.write_text("".join(f"w{i}\tRelatedTo\tw{i + 1}\n" for i in range(100)))
    parts = {split: read(file, split=split)[0] for split in ("train", "dev", "test")}
    assert [len(part) for part in parts.values()] == [80, 10, 10]
    assert sorted(sum(parts.values(), [])) == sorted(read(file)[0]) and len(set(sum(parts.values(), []))) == 100
    assert parts["dev"] == read(file, split="dev")[0]
