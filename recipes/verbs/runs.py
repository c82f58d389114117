"""`graft runs`: the runs below a folder and how they stand; follow one, stop one, go on with one.

A run is a process of its own. What is done here reads its folder or sends it a signal; closing this or any terminal
changes nothing for it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from recipes.verbs import count, share

EXAMPLES = """  graft runs
  graft runs /data/runs
  graft runs attach runs/alma/42      follow its log; Ctrl-C leaves it running
  graft runs stop runs/alma/42        after its step, with a checkpoint
  graft runs resume runs/alma/42      go on in the background"""

ACTIONS = ("attach", "stop", "resume")
WAIT_S = 0.3


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="runs", help="folder to list, or attach, stop, resume")
    parser.add_argument("run", nargs="?", help="run folder, for attach, stop and resume")
    parser.add_argument("--gpus", type=count, help="resume on this many GPUs")
    parser.add_argument("--timeout", type=share, default=600, help="seconds that stop waits for the run's last step")


def run(options: argparse.Namespace) -> int:
    from core.config.run_folder import RunFolder
    from core.errors import ConfigError

    if options.what not in ACTIONS:
        if options.run is not None:
            raise ConfigError(f"unknown action '{options.what}'", hint=f"known: {', '.join(ACTIONS)}")
        return show(options.what)
    if options.run is None:
        raise ConfigError(f"graft runs {options.what} needs a run folder", hint="graft runs lists them")
    folder = RunFolder.open(options.run)
    if options.what == "attach":
        return attach(folder)
    if options.what == "stop":
        return stop(folder, options.timeout)
    return resume(folder, options.gpus)


def show(root: str) -> int:
    """One line a run, newest first."""
    from core.config.run_folder import find_runs

    found = find_runs(root)
    if not found:
        print(f"no runs below {root}; graft train recipes/translation/quickstart.yaml makes one")
    for folder in found:
        info = folder.info()
        last = next(iter(deque(folder.read_metrics(), maxlen=1)), None)
        step = f"step {last['step']}" if last and "step" in last else ""
        age = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.get("created", 0)))
        standing = folder.standing()
        why = f"  {str(info.get('error')).splitlines()[0][:100]}" if standing == "failed" and info.get("error") else ""
        print(f"{str(folder.path):<40} {standing:<12} {info.get('app', ''):<12} {step:<12} {age}{why}")
    return 0


def attach(folder) -> int:
    """Print the run's log and what is added to it, until the run ends."""
    log, read = folder.path / "log.txt", 0
    try:
        while True:
            alive = folder.standing() in ("starting", "running")
            if log.is_file():
                with open(log, encoding="utf-8", errors="replace") as handle:
                    handle.seek(read)
                    print(handle.read(), end="", flush=True)
                    read = handle.tell()
            if not alive:
                break
            time.sleep(WAIT_S)
    except KeyboardInterrupt:
        print(f"\nleft; the run goes on. graft runs stop {folder.path}   graft runs attach {folder.path}")
        return 0
    print(f"{folder.path}: {folder.standing()}")
    return 0


def stop(folder, timeout: float) -> int:
    """Ask the run to end its step, save and stop; wait until it has."""
    from core.errors import GraftError

    if folder.standing() not in ("starting", "running"):
        print(f"{folder.path} is not running ({folder.standing()})")
        return 0
    os.kill(folder.info()["pid"], signal.SIGTERM)
    end = time.monotonic() + timeout
    while folder.standing() in ("starting", "running"):
        if time.monotonic() > end:
            raise GraftError(
                "the run has not stopped yet", where=str(folder.path), hint="it stops after its step; ask again later"
            )
        time.sleep(WAIT_S)
    print(f"{folder.path}: {folder.standing()}; go on with: graft runs resume {folder.path}")
    return 0


def resume(folder, gpus: int | None) -> int:
    """Go on with the run in a process of its own."""
    start(folder, gpus)
    print(f"{folder.path} goes on in the background: graft runs attach {folder.path}")
    return 0


def start(folder, gpus: int | None = None) -> int:
    """Run the folder's recipe in a session of its own, its output in console.txt. Returns the process's number."""
    from core.errors import GraftError

    if folder.standing() in ("starting", "running"):
        raise GraftError(
            f"the run is running (process {folder.info().get('pid')})",
            where=str(folder.path),
            hint=f"graft runs attach {folder.path}   graft runs stop {folder.path}",
        )
    command = [sys.executable, "-m", "recipes", "train", "--resume", str(folder.path)]
    if gpus is not None:
        command += ["--gpus", str(gpus)]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with open(folder.path / "console.txt", "ab") as console:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
    folder.mark_starting(child.pid)
    return child.pid
