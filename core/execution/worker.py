"""A jailed interpreter that stays warm: one launch, many calls.

    with Sandbox.best(Policy()).worker("def twice(x): return 2 * x") as tools:
        tools.call("twice", 21).value          # 42
        tools.execute("ans = twice(4)").value  # 8

A call that outlives its limit, or a tool that breaks a limit of the policy, ends the interpreter; the next call starts
a new one, so no state survives from there. Values travel as JSON and are never unpickled.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from core.errors import ConfigError, SandboxError
from core.execution import backends
from core.execution.policy import Step

if TYPE_CHECKING:
    from core.execution.running import Running
    from core.execution.sandbox import Sandbox

_SERVED = Path(__file__).parent / "inside" / "served.py"
_LONG = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Answer:
    """What a call came to.

    Args:
        status: ok; error for an exception of the tool; timeout, memory, output_limit, disk_limit or killed when the
            interpreter ended.
        value: JSON data. error: "Type: message". traceback: last lines inside the tool. stdout: what it printed.
    """

    status: str
    value: Any = None
    error: str = ""
    traceback: str = ""
    stdout: str = ""
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Worker:
    """Calls functions of `source` inside `box`. Thread-safe: one call at a time.

    Args:
        timeout_s: of a call that gives none. startup_s: for starting and for running the source once.
        paths: folders of Python packages; each must be among the policy's `ro`.

    Raises:
        SandboxError: the interpreter does not start, or the source itself fails (its message is in `hint`).
    """

    def __init__(
        self, box: Sandbox, source: str, *, timeout_s: float = 10, startup_s: float = 10, paths: Sequence[str] = ()
    ) -> None:
        self.box, self.source, self.timeout_s, self.startup_s = box, source, timeout_s, startup_s
        self.paths, self._lock, self._count = tuple(paths), threading.Lock(), 0
        self._running: Running | None = None
        for path in self.paths:
            if not any(path == ro or path.startswith(ro.rstrip("/") + "/") for ro in (*box.policy.ro, "/usr")):
                raise ConfigError(f"'{path}' is not visible inside the sandbox", hint="add it to the policy's ro")
        self._start()

    def call(self, function: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Answer:
        """`function(*args, **kwargs)` inside; arguments and result must be JSON data."""
        return self._ask({"call": function, "args": args, "kwargs": kwargs}, timeout_s)

    def execute(self, code: str, result: str = "ans", timeout_s: float | None = None) -> Answer:
        """Run statements that see the source's names; the value is that of the variable `result`."""
        return self._ask({"code": code, "result": result}, timeout_s)

    def close(self) -> None:
        """End the interpreter."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_running", None) is not None:
            self._end()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _ask(self, request: dict[str, Any], timeout_s: float | None) -> Answer:
        with self._lock:
            if self._running is None:
                self._start()
            self._count += 1
            try:
                line = json.dumps({"id": self._count, **request}, allow_nan=True).encode() + b"\n"
            except (TypeError, ValueError) as error:
                raise ConfigError(f"the arguments are not JSON data: {error}", where="Worker.call") from error
            start = time.perf_counter()
            try:
                reply = self._exchange(line, self.timeout_s if timeout_s is None else timeout_s)
            except TimeoutError:
                self._end()
                return Answer("timeout", error="the call took too long", wall_s=time.perf_counter() - start)
            wall = time.perf_counter() - start
            if reply is None or reply.get("id") != self._count:
                return Answer(self._post_mortem(), error="the interpreter ended during the call", wall_s=wall)
            status = "error" if "error" in reply else "ok"
            what, where, printed = (str(reply.get(name, "")) for name in ("error", "traceback", "stdout"))
            return Answer(status, reply.get("value"), what, where, printed, wall)

    def _start(self) -> None:
        from core.execution.running import Running

        policy = self.box.policy
        inside, self._into = os.pipe()
        self._out_of, outside = os.pipe()
        python = backends.interpreter()[0]
        limit = policy.max_output_kb << 10
        argv = [python, "-I", "-S", "served.py", str(inside), str(outside), str(limit), ":".join(self.paths)]
        files = {"served.py": _SERVED.read_text(encoding="utf-8"), "tools.py": self.source}
        job = self.box.job([Step(argv, wall_s=_LONG)], files, ())
        job["limits"]["CPU"] = int(_LONG)
        self._left = b""
        try:
            launch = self.box._backend.launch(policy)
            self._running = running = Running(launch, job, keep=(inside, outside))
        except BaseException:
            os.close(self._into)
            os.close(self._out_of)
            raise
        finally:
            os.close(inside)
            os.close(outside)
        os.set_blocking(self._out_of, False)
        running.send_job()
        try:
            ready = self._exchange(b"", self.startup_s)
        except TimeoutError:
            self._end()
            raise SandboxError("the source runs too long", hint="define functions only") from None
        if ready is None:
            status = self._post_mortem()
            raise SandboxError(f"the interpreter ended while it started: {status}")
        if "error" in ready:
            self._end()
            raise SandboxError(f"the source fails: {ready['error']}", hint=ready.get("traceback") or None)

    def _exchange(self, line: bytes, timeout_s: float) -> dict[str, Any] | None:
        """Send a line and wait for one. None when the interpreter is gone or says something that is not an answer."""
        deadline, data = time.monotonic() + timeout_s, memoryview(line)
        most = (self.box.policy.max_output_kb << 10) * 14 + 65536
        os.set_blocking(self._into, False)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            readable, writable, _ = select.select([self._out_of], [self._into] if data else [], [], left)
            try:
                if writable:
                    data = data[os.write(self._into, data[:65536]) :]
                if readable:
                    part = os.read(self._out_of, 1 << 16)
                    if not part:
                        return None
                    self._left += part
            except BrokenPipeError:
                return None
            if b"\n" in self._left:
                first, _, self._left = self._left.partition(b"\n")
                try:
                    reply = json.loads(first)
                except ValueError:
                    return None
                return reply if isinstance(reply, dict) else None
            if len(self._left) > most:
                return None

    def _post_mortem(self) -> str:
        """Why the interpreter ended, in the words of the runner's result."""
        from core.execution.running import parse_result

        running, self._running = self._running, None
        for fd in (self._into, self._out_of):
            os.close(fd)
        if running is None:
            return "killed"
        data = running.finish(time.monotonic() + 1.0, 1 << 24)
        try:
            status = parse_result(data or b"").status
        except (ValueError, IndexError):
            return "killed"
        return "killed" if status in ("ok", "nonzero") else status

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            for fd in (self._into, self._out_of):
                os.close(fd)
            running.stop()
