"""What came back from a call, and the frame of everything that runs calls.

The status numbers are ToolBench's (Qin et al. 2023): they decide how a search goes on, and a model is told the words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from apps.tool_use.calls import Call
from apps.tool_use.schema import check_schema, problem
from apps.tool_use.spec import ToolSpec, as_spec, check_tools
from core.errors import ConfigError, nearest

OK, UNKNOWN, BAD_ARGUMENTS, ANSWER, GIVE_UP, TIMEOUT, NOT_FOUND = range(7)
NOT_SUBSCRIBED, UNAUTHORISED, RATE_LIMIT, RATE_LIMIT_LONG, ERROR_FIELD, FAILED = range(7, 13)
WORDS = (
    "ok", "unknown function", "bad arguments", "final answer", "gave up", "timeout", "not found", "not subscribed",
    "unauthorised", "rate limit", "rate limit of the day", "the tool reports an error", "the request failed",
)  # fmt: skip
LONGEST = 1024
"""Characters of an observation that a model is shown."""


@dataclass(frozen=True)
class Observation:
    """What a call came to.

    Args:
        text: what the model reads. status: index into `WORDS`; 0 is a result.
        seconds: the call took. cut: characters that were left out of the text.
    """

    text: str
    status: int = OK
    seconds: float = 0.0
    cut: int = 0

    @property
    def ok(self) -> bool:
        return self.status == OK

    @property
    def word(self) -> str:
        return WORDS[self.status]

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "status": self.status, "seconds": round(self.seconds, 4), "cut": self.cut}


class Failure(Exception):
    """Raised by an executor's `_call` for a failure that has a status of its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Executor:
    """Runs calls of `tools`; subclasses implement `_call(tool, arguments) -> JSON data`.

    Args:
        tools: specs, functions or entries of chat completions. longest: characters of an observation.
        keep: for a tool's name the keys that its JSON results keep, at every depth; others come whole.
    """

    def __init__(
        self, tools: Sequence[Any], *, longest: int = LONGEST, keep: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.tools = tuple(as_spec(tool) for tool in tools)
        check_tools(self.tools)
        for tool in self.tools:
            check_schema(tool)
        self._by_name = {tool.name: tool for tool in self.tools}
        self.longest, self.keep = longest, dict(keep or {})
        for name in self.keep:
            if name not in self._by_name:
                raise ConfigError(f"keys to keep of an unknown tool '{name}'", hint=nearest(name, self._by_name))

    def run(self, call: Call) -> Observation:
        """The observation of a call; a failure is one too."""
        start = time.perf_counter()
        text, status = self._observed(call)
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        shown, cut = text[: self.longest], max(0, len(text) - self.longest)
        return Observation(shown, status, time.perf_counter() - start, cut)

    def run_all(self, calls: Sequence[Call]) -> list[Observation]:
        """The observations of calls made at once, in their order."""
        if len(calls) < 2:
            return [self.run(call) for call in calls]
        with ThreadPoolExecutor(min(8, len(calls))) as pool:
            return list(pool.map(self.run, calls))

    def _observed(self, call: Call) -> tuple[str, int]:
        tool = self._by_name.get(call.name)
        if tool is None:
            return f"There is no function '{call.name}'. {nearest(call.name, self._by_name)}".strip(), UNKNOWN
        wrong = problem(tool, dict(call.arguments))
        if wrong is not None:
            return f"Bad arguments: {wrong}", BAD_ARGUMENTS
        try:
            value = self._call(tool, dict(call.arguments))
        except Failure as failure:
            return failure.text, failure.status
        value = kept(value, self.keep[tool.name]) if tool.name in self.keep else value
        failed = isinstance(value, Mapping) and bool(value.get("error"))
        return (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        ), ERROR_FIELD if failed else OK

    def _call(self, tool: ToolSpec, arguments: dict[str, Any]) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no _call()")

    def close(self) -> None:
        """End what the executor holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def kept(value: Any, keys: Sequence[str]) -> Any:
    """JSON data with only these keys of its objects; objects that lead to one of them stay."""
    if isinstance(value, Mapping):
        inner = {k: v if k in keys else kept(v, keys) for k, v in value.items() if k in keys or _holds(v, keys)}
        return inner
    return [kept(item, keys) for item in value] if isinstance(value, list) else value


def _holds(value: Any, keys: Sequence[str]) -> bool:
    if isinstance(value, Mapping):
        return any(k in keys or _holds(v, keys) for k, v in value.items())
    return isinstance(value, list) and any(_holds(item, keys) for item in value)
