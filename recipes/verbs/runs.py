"""`graft runs`: the runs below a folder and how they stand."""

from __future__ import annotations

import argparse
import os
import time
from collections import deque

EXAMPLES = """  graft runs
  graft runs /data/runs"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", nargs="?", default="runs")


def run(options: argparse.Namespace) -> int:
    from core.config.run_folder import find_runs

    found = find_runs(options.root)
    if not found:
        print(f"no runs below {options.root}; graft train recipes/translation/quickstart.yaml makes one")
    for folder in found:
        info = folder.info()
        last = next(iter(deque(folder.read_metrics(), maxlen=1)), None)
        step = f"step {last['step']}" if last and "step" in last else ""
        age = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.get("created", 0)))
        print(f"{str(folder.path):<40} {_status(info):<12} {info.get('app', ''):<12} {step:<12} {age}")
    return 0


def _status(info: dict) -> str:
    """A run that says it is running but whose process is gone was killed."""
    status = info.get("status", "unknown")
    if status == "running" and not _alive(info.get("pid")):
        return "killed"
    return status


def _alive(pid: int | None) -> bool:
    try:
        os.kill(pid or -1, 0)
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    except PermissionError:
        return True
    return bool(pid)
