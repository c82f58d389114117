"""A run in the background: it is listed, followed, stopped with a checkpoint, and goes on."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from core.config.files import read_json, write_json, write_text
from core.config.load import dump_yaml, recipe_from
from core.config.run_folder import RunFolder, is_alive, process
from core.errors import ConfigError, GraftError
from core.training import checkpoint
from recipes.cli import main
from recipes.verbs import runs

ROOT = Path(__file__).parents[2]


def new_run(folder, steps=4000, every=500):
    return RunFolder.create(
        recipe_from(
            {
                "app": "translation",
                "output": str(folder),
                "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
                "data": {
                    "train": [
                        {"reader": "embedded", "split": "train", "limit": 16, "with": {"src": "de", "tgt": "en"}}
                    ],
                    "max_length": 160,
                },
                "method": "translation.parallel",
                "train": {"max_steps": steps, "batch": {"size": 8}},
                "eval": {"every": 0},
                "checkpoint": {"every": every},
            }
        )
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_a_run_in_the_background_is_stopped_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = new_run(tmp_path / "run")
    pid = runs.start(folder)
    try:
        assert folder.standing() in ("starting", "running")
        with pytest.raises(GraftError, match="is running"):
            runs.start(folder)
        wait_for(lambda: any("loss" in row for row in folder.read_metrics()))
        assert os.getsid(pid) == pid, "it has a session of its own"
        assert main(["runs", str(tmp_path)]) == 0 and "running" in capsys.readouterr().out
        assert main(["train", "--resume", str(folder.path)]) == 2
        assert main(["runs", "stop", str(folder.path)]) == 0
        assert folder.standing() == "stopped"
        assert checkpoint.newest(folder.stage_dir(0, "parallel") / "checkpoints") is not None
        done = max(row["step"] for row in folder.read_metrics())
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    recipe = folder.recipe()
    recipe.train.max_steps = done + 2
    write_text(folder.path / "resolved.yaml", dump_yaml(recipe))
    (folder.stage_dir(0, "parallel") / "plan.json").unlink()
    assert main(["runs", "resume", str(folder.path)]) == 0
    assert main(["runs", "attach", str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert folder.standing() == "done" and "resuming at checkpoint" in said and f"{folder.path}: done" in said


def test_a_run_that_was_killed_is_known_as_such_and_loses_no_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = new_run(tmp_path / "run", every=3)
    pid = runs.start(folder)
    place = folder.stage_dir(0, "parallel") / "checkpoints"
    wait_for(lambda: checkpoint.newest(place) is not None)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    assert folder.standing() == "killed"
    assert main(["runs", str(tmp_path)]) == 0 and "killed" in capsys.readouterr().out
    assert main(["runs", "stop", str(folder.path)]) == 0 and "is not running (killed)" in capsys.readouterr().out
    kept = checkpoint.manifest(checkpoint.newest(place))["step"]
    recipe = folder.recipe()
    recipe.train.max_steps = kept + 2
    write_text(folder.path / "resolved.yaml", dump_yaml(recipe))
    (folder.stage_dir(0, "parallel") / "plan.json").unlink()
    assert main(["runs", "resume", str(folder.path)]) == 0
    assert main(["runs", "attach", str(folder.path)]) == 0
    assert folder.standing() == "done" and f"resuming at checkpoint-{kept}" in capsys.readouterr().out
    steps = [row["step"] for row in folder.read_metrics() if "loss" in row]
    assert steps == list(range(1, kept + 3)), "each step once, also those after the checkpoint that were killed"


def test_a_closed_terminal_ends_nothing():
    """The process loses its terminal in the middle: what it prints then goes nowhere, and it goes on."""
    script = (
        "import os, sys, signal, time\n"
        "from pathlib import Path\n"
        "from core.config.run_folder import RunFolder\n"
        "from core.training.callbacks import StopAndSave, say\n"
        "run = RunFolder(Path(sys.argv[1])); stopper = StopAndSave(run)\n"
        "stopper.on_train_begin(None, None, None)\n"
        "say(run, 'first'); time.sleep(1.0)\n"
        "say(run, 'second'); say(run, 'third'); print('fourth')\n"
    )
    with tempfile.TemporaryDirectory() as place:
        reading, writing = os.openpty()
        child = subprocess.Popen(
            [sys.executable, "-c", script, place], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT
        )
        os.close(writing)
        wait_for(lambda: (Path(place) / "log.txt").is_file())
        os.close(reading)
        os.kill(child.pid, signal.SIGHUP)
        assert child.wait(timeout=60) == 0, child.stderr.read()
        assert (Path(place) / "log.txt").read_text().split() == ["first", "second", "third"]


def test_a_process_is_known_by_number_and_birth():
    me = process()
    assert is_alive(me["pid"], me["pid_since"]) and not is_alive(me["pid"], "1")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    wait_for(lambda: not is_alive(child.pid))
    child.wait()
    assert not is_alive(None) and not is_alive(child.pid)


def test_wrong_words_are_said(tmp_path):
    for words, message in ((["atach", "x"], "known: attach"), (["attach"], "needs a run folder")):
        with pytest.raises(ConfigError) as caught:
            runs.run(argparse.Namespace(what=words[0], run=(words[1:] or [None])[0]))
        assert message in str(caught.value)
    assert main(["runs", "attach", str(tmp_path)]) == 2


def test_only_the_main_process_says_what_comes_next(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("core.training.run.train", lambda *args, **kwargs: {})
    folder = new_run(tmp_path / "run")
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "--resume", str(folder.path)]) == 0
        assert ("next: graft demo" in capsys.readouterr().out) == said


def test_a_run_that_another_process_has_is_not_started_twice(tmp_path, capsys):
    folder = new_run(tmp_path / "run")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        info = read_json(folder.path / "run.json")
        write_json(folder.path / "run.json", {**info, "status": "running", "pid": other.pid, "pid_since": None})
        assert main(["train", "--resume", str(folder.path)]) == 2
        assert f"process {other.pid}" in capsys.readouterr().err
    finally:
        other.kill()
        other.wait()
