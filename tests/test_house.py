"""The house rules that a machine can check: floors, sizes, and what a package may hold."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "apps", "data_juicer_ops", "recipes", "demos")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_imports_point_down():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("import-linter is not installed (extra dev)")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_opens_with_a_paragraph_and_stays_short(path):
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert text.lstrip().startswith(('"""', "'''")), "the module has no docstring"
    assert len(text.splitlines()) <= 400, "over 400 lines: it holds more than one idea"
    assert path.name != "utils.py"


def test_nothing_is_left_for_later():
    pattern = re.compile(r"#.*\b(TODO|FIXME|XXX)\b|raise NotImplementedError\b(?!\()")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, found


def test_an_app_has_the_same_rooms_as_every_other():
    for app in (p for p in (ROOT / "apps").iterdir() if (p / "__init__.py").is_file()):
        for room in ("data.py", "pipeline.py", "evaluator.py", "methods/__init__.py"):
            assert (app / room).is_file(), f"{app.name} has no {room}"
        core_files = [app / f for f in ("data.py", "pipeline.py", "evaluator.py", "prompts.py") if (app / f).is_file()]
        assert sum(len(f.read_text(encoding="utf-8").splitlines()) for f in core_files) <= 900


def test_importing_an_app_or_the_configuration_pulls_in_no_torch():
    code = (
        "import sys, core.config.load, core.errors, apps.translation, apps.lm, recipes.cli;"
        "bad=[m for m in ('torch','transformers','gradio','peft','sacrebleu') if m in sys.modules]; assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_functional_dropout_ends_with_training():
    """torch's function drops in evaluation too unless it is told what mode the model is in."""
    everywhere = []
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("F.dropout", "functional.dropout")):
                if not any(keyword.arg == "training" for keyword in call.keywords):
                    everywhere.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not everywhere
