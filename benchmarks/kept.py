"""Runs of a bar that are done, one file each: a bar that was killed goes on after them (`run ID --go-on`)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json


class Kept:
    """Results of finished runs below a bar's folder.

    Args:
        work: the bar's folder.
    """

    def __init__(self, work: Path) -> None:
        self.folder = work / "kept"

    def find(self, what: Any) -> Any | None:
        """The result of the run that `what` (JSON values) describes, or None."""
        path = self._path(what)
        return read_json(path) if path.is_file() else None

    def keep(self, what: Any, name: str, result: Any) -> None:
        """Store a run's result (JSON values), and say on standard error that `name` is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(what), result)
        print(f"{name} is done", file=sys.stderr, flush=True)

    def forget(self) -> None:
        """The bar is measured: the next time begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, what: Any) -> Path:
        told = json.dumps(what, sort_keys=True)
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
