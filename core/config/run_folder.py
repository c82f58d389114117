"""The run folder: the only thing that one verb hands to the next.

It knows the names of the files in it and how to write them safely, and nothing of what is trained. `run.json` says what
the run is and how it stands; `metrics.jsonl` grows by one line a step; a torn last line, as a killed process leaves it,
is skipped when read.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json, write_text
from core.config.load import dump_yaml
from core.config.schema import Recipe
from core.errors import GraftError

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "tokenizers",
    "sacrebleu",
    "gradio",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("graft", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def process() -> dict[str, Any]:
    """Which process this is, so that another can tell whether it still lives."""
    return {"pid": os.getpid(), "pid_since": _since(os.getpid()), "host": platform.node()}


def is_alive(pid: int | None, since: str | None = None) -> bool:
    """Whether the process lives, and is not another that got the same number."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    now = _since(pid)
    return now != "dead" and (since is None or now is None or since == now)


def _since(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; "dead" for one that only waits to be collected."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            fields = handle.read().rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in ("Z", "X") else fields[19]


class RunFolder:
    """A run on disk.

    Args:
        path: the folder; use `create` for a new run and `open` for one that must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, recipe: Recipe, command: list[str] | None = None) -> RunFolder:
        """A new run at the recipe's `output`. A finished or live run there is never overwritten.

        Raises:
            GraftError: when the folder holds another run; the hint says how to resume or to choose another place.
        """
        name = Path(recipe.source.file).stem if recipe.source else "recipe"
        run = cls(recipe.output.format(recipe=name, seed=recipe.seed, app=recipe.app))
        if (run.path / "run.json").exists():
            status = run.info().get("status")
            raise GraftError(
                f"the folder already holds a run ({status})",
                where=str(run.path),
                hint=f"graft train --resume {run.path}   or   output=OTHER   or   seed=N   or   --force to replace it",
            )
        write_json(
            run.path / "run.json",
            {
                "id": uuid.uuid4().hex[:12],
                "app": recipe.app,
                "recipe": name,
                "seed": recipe.seed,
                "status": "created",
                **process(),
                "command": command or sys.argv,
                "created": time.time(),
                "versions": versions(),
            },
        )
        if recipe.source and Path(recipe.source.file).is_file():
            write_text(run.path / "recipe.yaml", Path(recipe.source.file).read_text(encoding="utf-8"))
        else:
            write_text(run.path / "recipe.yaml", dump_yaml(recipe))
        write_text(run.path / "resolved.yaml", dump_yaml(recipe))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run; a path inside it (its `model/`, say) is accepted too."""
        given = Path(path)
        for candidate in (given, *list(given.parents)[:2]):
            if (candidate / "run.json").is_file():
                return cls(candidate)
        raise GraftError("not a run folder: it has no run.json", where=str(path), hint="graft runs lists the runs here")

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def merged_dir(self) -> Path:
        return self.path / "merged"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rejects(self) -> Path:
        return self.path / "rejects.jsonl"

    def stage_dir(self, index: int, name: str) -> Path:
        return self.path / "stages" / f"{index:02d}-{name}"

    def eval_dir(self, when: str) -> Path:
        return self.path / "eval" / when

    def info(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def set_status(self, status: str, **extra: Any) -> None:
        """Update run.json: status is created, starting, running, stopped, failed or done."""
        write_json(
            self.path / "run.json",
            {**self.info(), "status": status, **process(), "updated": time.time(), **extra},
        )

    def mark_starting(self, pid: int) -> None:
        """Note that another process is about to run this, unless it has said so itself by now."""
        info = self.info()
        if info.get("status") != "running" or not is_alive(info.get("pid"), info.get("pid_since")):
            started = {"pid": pid, "pid_since": _since(pid), "host": platform.node(), "updated": time.time()}
            write_json(self.path / "run.json", {**info, "status": "starting", **started})

    def standing(self) -> str:
        """The status; "killed" for a run that says it is running while its process on this machine is gone."""
        info = self.info()
        status = info.get("status", "unknown")
        if status in ("running", "starting") and info.get("host", platform.node()) == platform.node():
            return status if is_alive(info.get("pid"), info.get("pid_since")) else "killed"
        return status

    def log_metric(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; visible to readers at once."""
        with open(self.metrics, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl, skipping a torn one."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def recipe(self) -> Recipe:
        """The resolved recipe of this run."""
        from core.config.load import load_recipe

        return load_recipe(self.path / "resolved.yaml")


def find_runs(root: str | Path = "runs") -> list[RunFolder]:
    """Every run below `root`, newest first; a folder whose run.json is torn is passed over."""
    found = []
    for path in Path(root).glob("**/run.json"):
        run = RunFolder(path.parent)
        try:
            found.append((run.info().get("created", 0), run))
        except (GraftError, AttributeError):
            continue
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]
