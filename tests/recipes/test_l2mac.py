"""`graft l2mac` as a user types it, and killed as a machine kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.execution import Sandbox
from core.execution.tools import has
from recipes.cli import main

ROOT = Path(__file__).parents[2]
needs_all = pytest.mark.skipif(
    not has("iverilog") or not any(p.available and p.level == "strict" for p in Sandbox.probe()),
    reason="needs iverilog and a strict sandbox (Debian packages: iverilog, bubblewrap)",
)


@needs_all
def test_killed_after_any_turn_it_builds_the_same_files(tmp_path, capsys):
    assert main(["l2mac", "rtl/stopwatch", "--recorded", "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert "4/4  write stopwatch.v: ok. Verdict: differs from the reference." in said
    assert "done: all instructions are carried out (16 turns" in said
    command = [sys.executable, "-m", "recipes", "l2mac", "rtl/stopwatch", "--recorded", "--out", str(tmp_path / "torn")]
    for turns in (1, 4, 6):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for line in process.stdout:
            turns -= "/4  " in line
            if turns == 0:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    assert main(["l2mac", "rtl/stopwatch", "--recorded", "--out", str(tmp_path / "torn")]) == 0
    assert "going on after turn" in capsys.readouterr().out
    whole, torn = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "torn"))
    assert whole == torn
    for file in (tmp_path / "whole" / "store" / "files").iterdir():
        assert file.read_text() == (tmp_path / "torn" / "store" / "files" / file.name).read_text()


def test_mistakes_are_one_message(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    for text, part in (
        ("task: x\ninstrctions: [a]\n", "did you mean 'instructions'"),
        ("task: x\ncheck: verylog\n", "did you mean 'verilog'"),
        ("task: x\ncheck: verilog\nwith: {header: hello}\n", "no 'module'"),
        ("task: x\ninstructions: [a]\ncheck: text\n", "no answers are recorded"),
    ):
        mine.write_text(text)
        assert main(["l2mac", str(mine), "--recorded", "--out", str(tmp_path / "o")]) == 2
        assert part in capsys.readouterr().err
    assert main(["l2mac", "rtl/stopwach", "--recorded"]) == 2
    assert "rtl/stopwatch" in capsys.readouterr().err
