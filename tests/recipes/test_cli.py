"""The command line as a user types it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.cli import VERBS, main

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "gradio", "datasets", "numpy", "yaml")


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        f"import sys; from recipes.cli import main; main(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert time.perf_counter() - start < 5
    assert out.strip().endswith("[]") and all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0 and f"graft {verb}" in capsys.readouterr().out


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_check_accepts_the_quickstart_without_torch(capsys):
    code = (
        "import sys; from recipes.cli import main; status = main(['check', 'recipes/translation/quickstart.yaml']);"
        "print('torch' in sys.modules, status)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "recipe is valid" in out and out.strip().endswith("False 0")


def test_check_show_prints_every_default(capsys):
    assert main(["check", "recipes/translation/quickstart.yaml", "--show"]) == 0
    out = capsys.readouterr().out
    assert "activation_checkpoint" in out and "on_bad" in out


def test_errors_are_one_message_and_status_two(tmp_path, capsys):
    assert main(["check", "recipes/translation/quickstrat.yaml"]) == 2
    assert "did you mean 'translation/quickstart'?" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_copy_never_overwrites(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    assert main(["copy", "translation/alma", str(target)]) == 0 and target.is_file()
    target.write_text("kept")
    assert main(["copy", "translation/alma", str(target)]) == 2 and target.read_text() == "kept"


def test_ls_shows_what_ships(capsys):
    for what, name in {
        "recipes": "translation/quickstart",
        "methods": "translation.parallel",
        "readers": "moses",
    }.items():
        assert main(["ls", what]) == 0
        assert name in capsys.readouterr().out


def test_runs_of_an_empty_folder(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out


def test_overrides_may_stand_on_both_sides_of_an_option(capsys):
    assert main(["check", "translation/quickstart", "--show", "train.max_steps=7"]) == 0
    assert "max_steps: 7" in capsys.readouterr().out
