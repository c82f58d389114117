"""Tools that a model made, on disk: a folder for each version, and nothing in it that was not seen to work.

    <store>/<name>/<version>/tool.py, card.json

A tool is saved only when all its tests pass in the sandbox, and each load runs them again there: a file that was
changed, or that no longer does what its card says, is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json, write_text
from core.errors import CheckpointError, ConfigError, nearest
from core.execution import Policy, Sandbox, Worker


@dataclass(frozen=True)
class Worked:
    """A question, its answer, and the code that gets the answer from the tool: it sets `ans`."""

    question: str
    answer: str
    code: str


@dataclass(frozen=True)
class MadeTool:
    """A function with what is known of it.

    Args:
        name: of the task, letters, digits and underscores. task: what it solves, one line. source: Python.
        tests: worked questions that all must come out right; they are also what a user learns the call from.
        model: who made it. tries: (for the function, for its calls). timeout_s: of a call.
    """

    name: str
    task: str
    source: str
    tests: tuple[Worked, ...]
    model: str = ""
    tries: tuple[int, int] = (1, 1)
    timeout_s: float = 5.0
    version: int = 0

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()


@dataclass
class Tried:
    """What code came to: `right` against an answer, the value or what went wrong, and seconds."""

    right: bool
    value: Any = None
    error: str = ""
    seconds: float = 0.0


def same(value: Any, answer: str) -> bool:
    """Whether a result is the answer: as numbers where both are, else as texts without case and outer spaces.

    A list is the answer when its parts, joined by spaces or by commas, are.
    """
    if isinstance(value, list):
        parts = [str(part) for part in value]
        return any(_folded(sign.join(parts)) == _folded(answer) for sign in (" ", ", ", ""))
    try:
        return float(value) == float(answer)
    except (TypeError, ValueError):
        return _folded(str(value)) == _folded(answer)


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()


class Bench:
    """A sandbox with a tool in it, warm: runs code that calls the tool. Raises `SandboxError` when the tool fails."""

    def __init__(self, source: str, timeout_s: float = 5.0, policy: Policy | None = None) -> None:
        self.worker: Worker = Sandbox.best(policy or Policy(mem_mb=512)).worker(source, timeout_s=timeout_s)

    def run(self, code: str, answer: str | None = None, right: Callable[[Any, str], bool] = same) -> Tried:
        """What `code` sets `ans` to."""
        found = self.worker.execute(code)
        if not found.ok:
            return Tried(False, error=found.error or found.status, seconds=found.wall_s)
        if found.value is None:
            return Tried(False, error="the code does not set ans", seconds=found.wall_s)
        good = answer is not None and right(found.value, answer)
        error = "" if good or answer is None else f"ans is {found.value!r}, the answer is {answer!r}"
        return Tried(good, found.value, error, found.wall_s)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.worker.close()


def failing(tool: MadeTool) -> list[tuple[Worked, Tried]]:
    """The tests that the tool does not pass, run in the sandbox."""
    with Bench(tool.source, tool.timeout_s) as bench:
        tried = [(test, bench.run(test.code, test.answer)) for test in tool.tests]
    return [(test, found) for test, found in tried if not found.right]


@dataclass
class ToolStore:
    """A folder of verified tools. `names`, `load`, `save`; a load is tested once in the life of the store."""

    path: str | Path
    _loaded: dict[tuple[str, int], MadeTool] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Tools with at least one version."""
        folder = Path(self.path)
        return sorted(p.name for p in folder.iterdir() if self.versions(p.name)) if folder.is_dir() else []

    def versions(self, name: str) -> list[int]:
        folder = Path(self.path) / name
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(p.name) for p in found if p.name.isdigit() and (p / "card.json").is_file())

    def cards(self) -> list[dict[str, Any]]:
        """The newest card of every tool, as it stands on disk."""
        return [read_json(Path(self.path) / n / str(self.versions(n)[-1]) / "card.json") for n in self.names()]

    def save(self, tool: MadeTool) -> MadeTool:
        """Write a new version, whole or not at all. Raises `CheckpointError` when a test fails or there is none."""
        if not re.fullmatch(r"[A-Za-z]\w{0,63}", tool.name):
            raise ConfigError(f"'{tool.name}' is no name of a tool", hint="letters, digits and underscores")
        if not tool.tests:
            raise CheckpointError(f"the tool '{tool.name}' has no tests", hint="only verified tools are kept")
        self._verify(tool)
        tool = dataclasses.replace(tool, version=max(self.versions(tool.name), default=0) + 1)
        folder = Path(self.path) / tool.name / str(tool.version)
        temporary = folder.with_name(f".{tool.version}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
        try:
            write_text(temporary / "tool.py", tool.source)
            card = {**dataclasses.asdict(tool), "hash": tool.hash, "passed": len(tool.tests)}
            del card["source"]
            write_json(temporary / "card.json", card)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._loaded[tool.name, tool.version] = tool
        return tool

    def load(self, name: str, version: int | None = None) -> MadeTool:
        """The newest version, or the one asked for, after its tests were run again.

        Raises:
            ConfigError: no such tool. CheckpointError: changed since it was saved, or a test fails now.
        """
        versions = self.versions(name)
        if not versions or (version is not None and version not in versions):
            known = ", ".join(map(str, versions)) if versions else nearest(name, self.names())
            raise ConfigError(f"no tool '{name}'{f' of version {version}' if version else ''}", hint=known or None)
        version = version or versions[-1]
        if (name, version) in self._loaded:
            return self._loaded[name, version]
        folder = Path(self.path) / name / str(version)
        card, source = read_json(folder / "card.json"), (folder / "tool.py").read_text(encoding="utf-8")
        try:
            tests = tuple(Worked(**test) for test in card["tests"])
            tool = MadeTool(name, card["task"], source, tests, card["model"], tuple(card["tries"]), card["timeout_s"],
                            version)  # fmt: skip
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"not a card of a tool: {error!r}", where=str(folder / "card.json")) from error
        if tool.hash != card.get("hash"):
            raise CheckpointError("the tool was changed since it was verified", where=str(folder / "tool.py"))
        self._verify(tool, str(folder))
        self._loaded[name, version] = tool
        return tool

    @staticmethod
    def _verify(tool: MadeTool, where: str | None = None) -> None:
        wrong = failing(tool)
        if wrong:
            test, found = wrong[0]
            raise CheckpointError(
                f"{len(wrong)} of {len(tool.tests)} tests of '{tool.name}' fail: {found.error}", where=where,
                hint=f"the first: {test.code.strip()[:120]}",
            )  # fmt: skip
