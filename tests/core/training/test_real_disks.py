"""A disk that is really full, or really read-only: a clear error, the last checkpoint whole, an exact resume.

Each run happens on a small file system of its own, in a process that may mount one (a user namespace).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, subprocess, sys
sys.path.insert(0, {root!r})
from core.config.run_folder import RunFolder
from core.errors import GraftError
from core.training import checkpoint
from core.training.callbacks import LiveLine
from core.training.run import train
from tests.core.training.test_checkpoint_failures import new_run, weights
import torch

def mount(options):
    subprocess.run(["mount", *options, {disk!r}], check=True)

kind, disk = {kind!r}, {disk!r}
whole = new_run({outside!r}, {mode!r})
train(whole.recipe(), whole)
mount(["-t", "tmpfs", "-o", "size=" + ("3500k" if kind == "full" else "64m"), "none"])
run = new_run(disk + "/run", {mode!r})
logged = LiveLine.on_log

def then_read_only(self, args, state, control, **given):
    logged(self, args, state, control, **given)
    if state.global_step == 3:
        mount(["-o", "remount,ro"])

if kind == "read-only":
    LiveLine.on_log = then_read_only
try:
    train(run.recipe(), run)
    said = "nothing"
except GraftError as error:
    said = f"{{type(error).__name__}}: {{error}}"
LiveLine.on_log = logged
newest = checkpoint.newest(run.stage_dir(0, "parallel") / "checkpoints")
mount(["-o", "remount,rw,size=64m"])
train(run.recipe(), run, resume=True)
first, second = weights(whole), weights(run)
equal = all(torch.equal(second[name], value) for name, value in first.items())
print("FOUND", json.dumps({{"said": said, "newest": newest.name, "equal": equal, "status": run.info()["status"]}}))
"""


@pytest.fixture(scope="module", autouse=True)
def mounting(tmp_path_factory):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    place = tmp_path_factory.mktemp("disk")
    done = subprocess.run([*UNSHARE, f"mount -t tmpfs -o size=1m none {place}"], capture_output=True)
    if done.returncode:
        pytest.skip("file systems cannot be mounted in a namespace here")


UNSHARE = ["unshare", "--mount", "--map-root-user", "sh", "-c"]


@pytest.mark.parametrize("kind", ["full", "read-only"])
@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_the_run_ends_with_what_to_do_and_goes_on_when_there_is_room(tmp_path, kind, mode):
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    text = SCRIPT.format(root=str(ROOT), disk=str(disk), outside=str(tmp_path / "whole"), kind=kind, mode=mode)
    script.write_text(text)
    command = [*UNSHARE, f"OMP_NUM_THREADS=1 {sys.executable} {script}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("FOUND ")[2])
    assert ("space" if kind == "full" else "Read-only") in found["said"]
    assert found["newest"] in ("checkpoint-2", "checkpoint-4")
    assert found["equal"] and found["status"] == "done"
