"""Results by content: the same commands on the same files under the same limits and tools are run once.

The key is the SHA-256 of what decides the outcome; the folder holds a SQLite index and one compressed file for each
result. Two workers, or two processes, that want the same key wait for one run. A result that timed out answers only
runs that would have had no more time. The oldest results go when the folder grows over its limit.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core.errors import SandboxError
from core.execution.policy import ExecResult, Step, StepResult
from core.execution.sandbox import Sandbox
from core.execution.tools import ToolMissing, tool

_NEVER_KEPT = ("sandbox_error", "killed", "tool_missing")


class ExecCache:
    """A folder of results.

    Args:
        folder: made when it is not there. max_gb: of compressed results.

    Raises:
        SandboxError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, max_gb: float = 5.0) -> None:
        self.folder, self.max_bytes = Path(folder), int(max_gb * 2**30)
        self.hits, self.misses = 0, 0
        self._local, self._lock = threading.local(), threading.Lock()
        try:
            (self.folder / "results").mkdir(parents=True, exist_ok=True)
            (self.folder / "locks").mkdir(exist_ok=True)
            self._index().execute(
                "create table if not exists results (key text primary key, size integer, used real, wall real)"
            )
        except (OSError, sqlite3.Error) as error:
            raise SandboxError(f"the cache cannot be used: {error}", where=str(folder)) from error

    def run(
        self,
        box: Sandbox,
        steps: Iterable[Step],
        files: Mapping[str, str | bytes] | None = None,
        collect: Sequence[str] = (),
        extra: Any = None,
    ) -> ExecResult:
        """`box.run`, or its stored result (`cached` is then true).

        Args:
            extra: anything else that decides the outcome, such as a device's name and driver.
        """
        steps = list(steps)
        wall = sum(box.policy.wall_s if s.wall_s is None else s.wall_s for s in steps)
        key = self.key(box, steps, files, collect, extra)
        found = self.get(key, wall)
        if found is not None:
            return found
        with self._only_one(key):
            found = self.get(key, wall)
            if found is None:
                self.misses += 1
                found = box.run(steps, files, collect)
                self.put(key, found, wall)
            return found

    @staticmethod
    def key(
        box: Sandbox,
        steps: Sequence[Step],
        files: Mapping[str, str | bytes] | None,
        collect: Sequence[str],
        extra: Any = None,
    ) -> str:
        """SHA-256 of commands, contents of files, identities of the tools, and limits that can change the outcome."""
        contents = {}
        for name, content in sorted((files or {}).items()):
            contents[name] = hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
        identities = {}
        for name in sorted({step.argv[0] for step in steps}):
            if not name.startswith((".", "/box")):
                try:
                    identities[name] = tool(name).digest
                except ToolMissing:
                    identities[name] = "missing"
        what = {
            "steps": [[list(s.argv), hashlib.sha256(s.stdin).hexdigest(), s.only_if] for s in steps],
            "files": contents, "collect": sorted(collect), "tools": identities, "policy": box.policy.outcome(),
            "level": box.level, "extra": extra,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()

    def get(self, key: str, wall_s: float) -> ExecResult | None:
        """A stored result that answers a run of at most `wall_s` seconds."""
        row = self._index().execute("select wall from results where key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            found = _unpacked(zlib.decompress(self._place(key).read_bytes()))
        except (OSError, zlib.error, ValueError, KeyError, TypeError):
            return None
        if found.status == "timeout" and wall_s > row[0]:
            return None
        self._index().execute("update results set used = ? where key = ?", (time.time(), key))
        self.hits += 1
        return replace(found, cached=True)

    def put(self, key: str, result: ExecResult, wall_s: float) -> None:
        """Store a result; one that says more about the machine than about the code is not kept."""
        if result.status in _NEVER_KEPT:
            return
        place = self._place(key)
        place.parent.mkdir(exist_ok=True)
        data = zlib.compress(_packed(result), 1)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_bytes(data)
        os.replace(temporary, place)
        index = self._index()
        index.execute("insert or replace into results values (?, ?, ?, ?)", (key, len(data), time.time(), wall_s))
        (total,) = index.execute("select coalesce(sum(size), 0) from results").fetchone()
        if total > self.max_bytes:
            self._evict(total)

    def _evict(self, total: int) -> None:
        index = self._index()
        for key, size in index.execute("select key, size from results order by used").fetchall():
            if total <= 0.9 * self.max_bytes:
                return
            index.execute("delete from results where key = ?", (key,))
            self._place(key).unlink(missing_ok=True)
            total -= size

    def _place(self, key: str) -> Path:
        return self.folder / "results" / key[:2] / key[2:]

    def _index(self) -> sqlite3.Connection:
        """This thread's connection, of this process: SQLite connections survive neither threads nor forks."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.index = sqlite3.connect(self.folder / "index.sqlite", timeout=30, isolation_level=None)
            self._local.index.execute("pragma journal_mode = wal")
            self._local.index.execute("pragma synchronous = off")
            self._local.pid = os.getpid()
        return self._local.index

    @contextmanager
    def _only_one(self, key: str) -> Iterator[None]:
        """Hold the key's lock: a file lock, which other processes see and which a crash gives back."""
        with open(self.folder / "locks" / key[:3], "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _packed(result: ExecResult) -> bytes:
    blobs: list[bytes] = []

    def kept(content: bytes) -> int:
        blobs.append(content)
        return len(content)

    steps = [{**asdict(s), "stdout": kept(s.stdout), "stderr": kept(s.stderr)} for s in result.steps]
    artifacts = {name: kept(content) for name, content in result.artifacts.items()}
    head = {
        "status": result.status, "level": result.level, "wall_s": result.wall_s, "refused": result.refused,
        "steps": steps, "artifacts": artifacts,
    }  # fmt: skip
    return json.dumps(head).encode() + b"\n" + b"".join(blobs)


def _unpacked(data: bytes) -> ExecResult:
    line, _, blobs = data.partition(b"\n")
    head, at = json.loads(line), 0

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(blobs):
            raise ValueError("a stored result is cut")
        at += size
        return blobs[at - size : at]

    steps = tuple(StepResult(**{**s, "stdout": take(s["stdout"]), "stderr": take(s["stderr"])}) for s in head["steps"])
    artifacts = {name: take(size) for name, size in head["artifacts"].items()}
    return ExecResult(head["status"], steps, artifacts, head["refused"], head["level"], head["wall_s"])
