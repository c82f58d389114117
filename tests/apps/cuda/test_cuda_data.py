"""The readers, generated operators, and references: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apps.cuda import CudaExample, load_data
from apps.cuda.data import published_times, to_jsonl
from apps.cuda.taskgen import FAMILIES, HELD_FAMILIES, tasks
from core.errors import ConfigError, DataError

SOURCE = """import torch
import torch.nn as nn

class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x)

N = 64

def get_inputs():
    return [torch.rand(N, 3)]

def get_init_inputs():
    return []
"""


def kernelbench() -> Path:
    root = os.environ.get("GRAFT_DATA", "")
    for place in (Path(root) / "cuda" / "kernelbench", Path(root) / "data" / "cuda" / "kernelbench"):
        if root and (place / "problems.jsonl").is_file():
            return place
    pytest.skip(
        "no KernelBench: GRAFT_DATA/cuda/kernelbench/problems.jsonl (level, problem_id, name, reference_pytorch)"
    )


def test_jsonl_round_trip(tmp_path):
    rows = [CudaExample(SOURCE, "relu", sizes={"N": 8}, tolerance=1e-3, id="a"), CudaExample(SOURCE)]
    (tmp_path / "train.jsonl").write_text(to_jsonl(rows))
    assert load_data(tmp_path) == rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reference": "x ="}, "line 1 of the reference"), ({"reference": "x = 1"}, "does not define Model"),
        ({"reference": 3}, "wrong value"), ({"ref": SOURCE}, "unknown field"),
        ({"reference": SOURCE, "sizes": {"N": 0}}, "sizes"),
        ({"reference": SOURCE, "tolerance": -1}, "tolerance"), ([], "no"),
        ({"reference": SOURCE, "spec": "\ud800"}, "whole characters"), ({"reference": "-" * 90_000 + "1"}, "reference"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_file_and_line(tmp_path, row, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"reference": SOURCE}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        load_data(file)
    assert said in str(caught.value) and "rows.jsonl:2" in str(caught.value)


def test_kernelbench_folders(tmp_path):
    folder = tmp_path / "KernelBench" / "level1"
    folder.mkdir(parents=True)
    for name in ("10_b.py", "2_a.py"):
        (folder / name).write_text(SOURCE)
    found = load_data(tmp_path, "kernelbench")
    assert [e.id for e in found] == ["level1/2", "level1/10"] and found[0].name == "2_a"
    assert load_data(folder, "kernelbench", problem_ids=[10])[0].id == "level1/10"
    with pytest.raises(ConfigError, match="unknown level"):
        load_data(tmp_path, "kernelbench", split="7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no problems"):
        load_data(tmp_path / "empty", "kernelbench")


def test_the_real_kernelbench():
    place = kernelbench()
    found = load_data(place, "kernelbench")
    assert len(found) == 200 and len(load_data(place, "kernelbench", split="2")) == 80
    times = published_times(place, "H100_Modal")
    assert times["level1/1_Square_matrix_multiplication_"] == 2.66
    with pytest.raises(DataError, match="H100_Modal"):
        published_times(place, "T4")


def test_generated_operators_do_not_leak_between_splits():
    train = list(tasks(400))
    solutions = {(e.reference, e.solution) for e in train}
    assert {e.family for e in train} == set(FAMILIES) - HELD_FAMILIES
    held = list(tasks(80, split="unseen_params"))
    assert not any((e.reference, e.solution) in solutions for e in held)
    assert {e.family for e in tasks(40, split="unseen_family")} == set(HELD_FAMILIES)
    assert [e.id for e in tasks(20)] == [e.id for e in tasks(20)] and train[0].spec
    with pytest.raises(ConfigError, match="did you mean 'softmax'"):
        next(tasks(1, families=["softmx"]))
    with pytest.raises(ConfigError, match="unknown split"):
        next(tasks(1, split="test"))


def test_sizes_that_are_equal_are_halved_by_name_and_not_by_chance():
    from apps.cuda.inside.cases import constants, halved
    from apps.cuda.taskgen import make

    source = make("matmul", {"fused": "relu", "way": "naive", "tile": 16}).reference
    orders = (["m", "k", "n"], ["n", "m", "k"], ["k", "n", "m"])
    found = [halved(source, constants(source), order, 1 << 14, 4) for order in orders]  # type: ignore[arg-type]
    assert found[0] == found[1] == found[2] == {"m": 128, "k": 64, "n": 128}
