"""Every shipped recipe runs in its smoke form, and leaves a whole run folder."""

from __future__ import annotations

import json
import time

import pytest

from recipes.catalogue import shipped
from recipes.cli import main


@pytest.mark.parametrize("name", shipped())
def test_smoke(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    assert main(["train", name, "--smoke"]) == 0
    seconds = time.perf_counter() - start
    (folder,) = [p.parent for p in tmp_path.glob("**/run.json")]
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "done"
    assert (folder / "model" / "graft_pipeline.json").is_file()
    assert (folder / "eval" / "before" / "report.json").is_file() and (
        folder / "eval" / "after" / "report.json"
    ).is_file()
    assert seconds < 60, f"{name} took {seconds:.0f} s"
