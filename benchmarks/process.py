"""Timing commands as a user runs them: in a process of their own, from the root of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.bar import ROOT

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "GRADIO_ANALYTICS_ENABLED": "False"}


def run_timed(*arguments: str, command: str = sys.executable) -> tuple[float, str]:
    """Seconds and standard output of `command arguments…`. Raises `RuntimeError` with the last lines when it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [command, *arguments], cwd=ROOT, env={**os.environ, **OFFLINE}, capture_output=True, text=True, encoding="utf-8"
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise RuntimeError(f"{' '.join([command, *arguments])} ended with status {done.returncode}:\n{last}")
    return seconds, done.stdout
