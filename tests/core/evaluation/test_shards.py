"""Parts of an evaluation: every example in one of them on every machine, and predictions back in order."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from core.errors import ConfigError, DataError
from core.evaluation.shards import aligned, shard

EXAMPLES = [SimpleNamespace(id=f"p{n}") for n in range(40)]


def test_every_example_is_in_one_part_whatever_its_place():
    parts = [shard(EXAMPLES, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in EXAMPLES) and all(parts)
    assert shard(EXAMPLES[::-1], "2/3") == parts[1][::-1]
    assert len(shard([SimpleNamespace()] * 9, "1/2")) + len(shard([SimpleNamespace()] * 9, "2/2")) == 9
    with pytest.raises(DataError, match="none of the 1 examples"):
        [shard(EXAMPLES[:1], f"{i}/2") for i in (1, 2)]
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ConfigError, match="is no part"):
            shard(EXAMPLES, wrong)


def test_predictions_find_their_examples_by_id():
    rows = [{"id": e.id, "prediction": e.id.upper()} for part in ("2/2", "1/2") for e in shard(EXAMPLES, part)]
    assert aligned(rows, EXAMPLES) == [e.id.upper() for e in EXAMPLES]
    assert aligned([{"id": "p1", "prediction": "b", "texts": ["a", "b"]}], EXAMPLES[1:2]) == [["a", "b"]]
    twice = [SimpleNamespace(id="a"), EXAMPLES[0], SimpleNamespace(id="a")]
    given = [{"id": "a", "prediction": "1"}, {"id": "a", "prediction": "2"}, {"id": "p0", "prediction": "3"}]
    assert aligned(given, twice) == ["1", "3", "2"]
    with pytest.raises(DataError, match="2 predictions for 'p3', expected 1"):
        aligned([*rows, {"id": "p3", "prediction": "x"}], EXAMPLES)
    with pytest.raises(DataError, match="0 predictions for 'p"):
        aligned(rows[:-1], EXAMPLES)


def test_without_common_ids_the_order_counts():
    assert aligned([{"prediction": "a"}, {"prediction": "b"}], EXAMPLES[:2]) == ["a", "b"]
    assert aligned([{"id": 7, "prediction": "a"}], EXAMPLES[:1]) == ["a"]


def test_parts_of_a_command_are_scored_as_the_whole(tmp_path, capsys):
    from apps.rtl.data import to_jsonl
    from apps.rtl.taskgen import tasks
    from core.execution import Sandbox
    from core.execution.tools import has
    from recipes.cli import main

    if not has("iverilog") or not any(p.available and p.level == "strict" for p in Sandbox.probe()):
        pytest.skip("needs iverilog and a strict sandbox (Debian packages: iverilog, bubblewrap)")
    examples = list(tasks(6, families=["gate", "mux"], seed=1))
    (tmp_path / "data.jsonl").write_text(to_jsonl(examples))
    rows = [{"id": e.id, "prediction": [e.reference, "module TopModule"]} for e in examples]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    command = [
        "eval",
        "rtl",
        "--data",
        str(tmp_path / "data.jsonl"),
        "--evaluator",
        f"cache={tmp_path / 'cache'}",
        "k=[1, 2]",
    ]
    whole = ["--predictions", str(tmp_path / "all.jsonl")]
    for part in ("1/2", "2/2"):
        assert main([*command, *whole, "--shard", part, "--out", str(tmp_path / part[0])]) == 0
    merged = "".join((tmp_path / part / "predictions.jsonl").read_text() for part in "21")
    (tmp_path / "merged.jsonl").write_text(merged)
    assert merged.count("\n") == 6
    assert main([*command, "--predictions", str(tmp_path / "merged.jsonl"), "--out", str(tmp_path / "o")]) == 0
    metrics = json.loads((tmp_path / "o" / "report.json").read_text())["metrics"]
    assert metrics["pass@1"]["value"] == 50 and metrics["pass@2"]["value"] == 100
    assert main([*command, *whole, "--evaluator", "kk=1"]) == 2 and "no argument 'kk'" in capsys.readouterr().err
    assert main([*command, *whole, "--evaluator", "k=2", "--with", "task=spec"]) == 2
    assert "reader 'jsonl' has no argument 'task'" in capsys.readouterr().err
    (tmp_path / "half.jsonl").write_text('{"id": "a", "prediction": "module \\ud800"}\n')
    assert main([*command, "--predictions", str(tmp_path / "half.jsonl")]) == 2
    assert "half.jsonl:1" in (said := capsys.readouterr().err) and "half a character" in said


def test_a_search_collection_is_not_cut_into_parts(tmp_path, capsys):
    from recipes.cli import main

    (tmp_path / "data.jsonl").write_text('{"text": "a", "text2": "b", "score": 1}\n' * 4)
    (tmp_path / "said.jsonl").write_text('{"prediction": 1.0}\n' * 4)
    command = ["eval", "embeddings", "--data", str(tmp_path / "data.jsonl"), "--shard", "1/2"]
    assert main([*command, "--predictions", str(tmp_path / "said.jsonl")]) == 2
    assert "embeddings is scored on its data as a whole" in capsys.readouterr().err
