"""ITERTL as a run: every stage ranks answers of its own model, and keeps them in its own folder."""

from __future__ import annotations

import json

import pytest

from core.execution import Sandbox
from core.execution.tools import has
from recipes.cli import main

RECIPE = """
version: 1
app: rtl
seed: 3
model: {preset: tiny, tokenizer: "bpe:300"}
data: {train: [{reader: taskgen, split: train, with: {size: 8}}], max_length: 256, packing: false, on_bad: skip}
stages:
  - {name: first, method: rtl.itertl, with: {iterations: 1, samples_per_prompt: 2, max_new_tokens: 8}}
  - name: second
    method: rtl.itertl
    with: {iterations: 2, samples_per_prompt: 2, max_new_tokens: 8, own_schedule: true}
    train: {epochs: 2}
train: {epochs: 1, lr: 5e-2, batch: {size: 4, unit: rows}}
eval: {every: 0, retention: false}
"""


@pytest.mark.skipif(
    not has("iverilog") or not any(p.available and p.level == "strict" for p in Sandbox.probe()),
    reason="needs iverilog and a strict sandbox (Debian packages: iverilog, bubblewrap)",
)
def test_two_stages_rank_answers_of_their_own(tmp_path, capsys):
    (tmp_path / "two.yaml").write_text(RECIPE)
    assert main(["train", str(tmp_path / "two.yaml"), f"output={tmp_path}/run"]) == 0
    folders = sorted((tmp_path / "run" / "stages").glob("*/iterations"))
    names = [[f.name for f in sorted(folder.iterdir())] for folder in folders]
    assert names == [["iteration-0.jsonl"], ["iteration-0.jsonl", "iteration-1.jsonl"]]
    drawn = [
        [c["text"] for line in (folder / "iteration-0.jsonl").read_text().splitlines() for c in json.loads(line)]
        for folder in folders
    ]
    assert len(drawn[0]) == len(drawn[1]) > 0 and drawn[0] != drawn[1]
    told = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "mean_score" in line]
    assert len(told) == 3 and all("compiles" in line for line in told)
    command = ["check", str(tmp_path / "two.yaml")]
    assert main(command) == 0
    capsys.readouterr()
    unequal = RECIPE.replace("train: {epochs: 2}", "train: {epochs: 3}")
    (tmp_path / "two.yaml").write_text(unequal)
    assert main(["train", str(tmp_path / "two.yaml"), f"output={tmp_path}/other"]) == 2
    assert "own want as many equal numbers of epochs" in capsys.readouterr().err
