"""Observations from a file: what a call came to once, it comes to again; with a recording to make such files."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.executors.observation import Executor, Observation
from apps.tool_use.spec import as_spec
from core.errors import BackendUnavailable, DataError


def call_key(call: Call) -> str:
    """A call as text, whatever the order of its arguments."""
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True, ensure_ascii=False)


class Replay:
    """Answers the calls of a JSONL file, {"name", "arguments", "text", "status"} a line; of equal ones in their order.

    Args:
        tools: what a pipeline offers, where it is given none itself.

    Raises:
        DataError: a line that is no observation. BackendUnavailable: a call that was not recorded.
    """

    def __init__(self, path: str | Path, tools: Sequence[Any] = ()) -> None:
        self.path, self.tools = Path(path), tuple(as_spec(tool) for tool in tools)
        self._found: dict[str, list[Observation]] = {}
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise BackendUnavailable("the recording does not exist", where=str(path))
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                key = call_key(Call(row["name"], row["arguments"]))
                observation = Observation(row["text"], row["status"], row.get("seconds", 0.0), row.get("cut", 0))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError("not a recorded observation", file=path, line=number, got=line) from error
            self._found.setdefault(key, []).append(observation)

    def run(self, call: Call) -> Observation:
        """The next observation recorded for the call; the last one again when there are no more."""
        with self._lock:
            found = self._found.get(call_key(call))
            if not found:
                raise BackendUnavailable(
                    f"no recorded observation of {call.name}({json.dumps(dict(call.arguments))[:80]})",
                    where=str(self.path), hint="record it with Recording(executor, path)",
                )  # fmt: skip
            return found.pop(0) if len(found) > 1 else found[0]

    def run_all(self, calls: Sequence[Call]) -> list[Observation]:
        return [self.run(call) for call in calls]

    def close(self) -> None:
        """Nothing to end."""


class Recording:
    """Runs calls with `executor` and appends what they came to to a file that `Replay` reads."""

    def __init__(self, executor: Executor, path: str | Path) -> None:
        self.executor, self.path, self.tools = executor, Path(path), executor.tools
        self._lock = threading.Lock()

    def run(self, call: Call) -> Observation:
        return self.run_all([call])[0]

    def run_all(self, calls: Sequence[Call]) -> list[Observation]:
        found = self.executor.run_all(calls)
        with self._lock, open(self.path, "a", encoding="utf-8") as handle:
            for call, observation in zip(calls, found):
                row = {**call.to_dict(), **observation.to_dict()}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        return found

    def close(self) -> None:
        self.executor.close()
