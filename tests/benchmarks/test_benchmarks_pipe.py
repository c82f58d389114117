"""A reader that leaves early ends the command quietly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_closed_pipe_is_no_traceback():
    writer = subprocess.Popen(
        [sys.executable, "-u", "-m", "benchmarks", "ls"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b"" and writer.wait(timeout=60) in (0, 1)
