"""Python source in the sandbox: what a model or a stranger wrote runs here, in an interpreter that stays warm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.tool_use.executors.observation import FAILED, TIMEOUT, Executor, Failure
from apps.tool_use.spec import ToolSpec
from core.errors import ConfigError
from core.execution import Policy, Sandbox

_INSIDE = """
def __call(name, arguments):
    return globals()[name](**arguments)

def __missing(names):
    return [name for name in names if not callable(globals().get(name))]
"""
"""Stands behind the source. Arguments travel as one object, so that no name of theirs can be one of the worker's."""


class Sandboxed(Executor):
    """Calls the functions that `source` defines, inside the strictest sandbox that works here.

    Args:
        source: Python that defines a function for each tool. timeout_s: of a call; the interpreter is then ended, and
            the next call starts a new one. policy: limits; the default is half a gigabyte and no network.

    Raises:
        SandboxError: no sandbox works here, with what to install; or the source fails.
        ConfigError: the source defines no function for a tool.
    """

    def __init__(
        self, source: str, tools: Sequence[Any], *, timeout_s: float = 10, policy: Policy | None = None, **options: Any
    ) -> None:
        super().__init__(tools, **options)
        self.timeout_s = timeout_s
        self.box = Sandbox.best(policy or Policy(mem_mb=512))
        self._worker = self.box.worker(f"{source}\n{_INSIDE}", timeout_s=timeout_s)
        missing = self._worker.call("__missing", [tool.name for tool in self.tools]).value
        if missing:
            self.close()
            raise ConfigError(f"the source defines no function '{missing[0]}'", where="Sandboxed")

    def _call(self, tool: ToolSpec, arguments: dict[str, Any]) -> Any:
        answer = self._worker.call("__call", tool.name, arguments, timeout_s=self.timeout_s)
        if answer.status == "timeout":
            raise Failure(TIMEOUT, f"'{tool.name}' took longer than {self.timeout_s:g} s.")
        if answer.status == "error":
            raise Failure(FAILED, answer.error)
        if not answer.ok:
            raise Failure(FAILED, f"'{tool.name}' was ended: {answer.status.replace('_', ' ')}.")
        return answer.value

    def close(self) -> None:
        self._worker.close()
