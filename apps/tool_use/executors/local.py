"""Functions of this process, called where they are: for code that you wrote, never for code that a model wrote."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from apps.tool_use.executors.observation import FAILED, TIMEOUT, Executor, Failure
from apps.tool_use.functions import from_function
from apps.tool_use.spec import ToolSpec
from core.errors import ConfigError, SandboxError


class Local(Executor):
    """Calls `functions` in this process.

    Args:
        trusted: must be true: nothing limits what the functions do. timeout_s: after which a call counts as failed and
            its result is dropped; the function itself cannot be stopped and runs on.

    Raises:
        SandboxError: not declared as trusted.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        *,
        trusted: bool = False,
        tools: Sequence[Any] | None = None,
        timeout_s: float = 30,
        **options: Any,
    ) -> None:
        if not trusted:
            raise SandboxError(
                "functions of this process run without any limit",
                hint="trusted=True when they are your own; Sandboxed(source, tools) for anything else",
            )
        self.timeout_s = timeout_s
        super().__init__(tools if tools is not None else [from_function(f) for f in functions], **options)
        self.functions: dict[str, Callable[..., Any]] = {}
        for function in functions:
            name = getattr(function, "__name__", "")
            if not name or name in self.functions:
                what = f"two functions are called '{name}'" if name else f"{function!r} has no name"
                raise ConfigError(what, where="Local", hint="give each its own, with def")
            self.functions[name] = function
        for tool in self.tools:
            if tool.name not in self.functions:
                raise ConfigError(f"no function is called '{tool.name}'", where="Local", hint="give one for each tool")

    def _call(self, tool: ToolSpec, arguments: dict[str, Any]) -> Any:
        found: list[Any] = []

        def work() -> None:
            try:
                value = self.functions[tool.name](**arguments)
                value = asyncio.run(value) if inspect.iscoroutine(value) else value
                found.append((True, json.loads(json.dumps(value))))
            except BaseException as error:  # noqa: BLE001  a tool that calls exit() ends its call, not the strategy
                found.append((False, f"{type(error).__name__}: {error}"))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.timeout_s)
        if not found:
            raise Failure(TIMEOUT, f"'{tool.name}' took longer than {self.timeout_s:g} s.")
        good, value = found[0]
        if not good:
            raise Failure(FAILED, value)
        return value
