"""A warm interpreter inside the sandbox: reads calls as JSON lines, runs the functions of tools.py, answers likewise.

Started as `python -I -S served.py REQUESTS ANSWERS LARGEST PATHS`. What the tools print is caught and sent along. Only
the standard library.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback


class Capped(io.StringIO):
    """Printed text up to a limit; more is dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, text: str) -> int:
        room = self.limit - self.tell()
        if room > 0:
            super().write(text[:room])
        return len(text)


def answer(names: dict, request: dict, limit: int) -> dict:
    """Run one request: {"call", "args", "kwargs"}, or {"code", "result"} for statements that set a variable."""
    printed = Capped(limit)
    reply: dict = {"id": request["id"]}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if "code" in request:
                local = dict(names)
                exec(compile(request["code"], "call", "exec"), local)
                value = local.get(request["result"])
            else:
                function = names.get(request["call"])
                if not callable(function):
                    raise NameError(f"the source defines no function '{request['call']}'")
                value = function(*request["args"], **request["kwargs"])
            text = json.dumps(value)
        if len(text) > limit:
            raise ValueError(f"the result is {len(text)} characters long, the limit is {limit}")
        reply["value"] = json.loads(text)
    except BaseException as error:
        reply["error"] = f"{type(error).__name__}: {error}"[:4000]
        reply["traceback"] = tail(error)
    reply["stdout"] = printed.getvalue()
    return reply


def tail(error: BaseException) -> str:
    """The last lines of the traceback that lie in the tools."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in ("tools.py", "call")]
    return "".join(traceback.format_list(frames[-3:]))[-2000:]


def main() -> None:
    requests, answers, limit = os.fdopen(int(sys.argv[1]), "rb"), int(sys.argv[2]), int(sys.argv[3])
    sys.path[:0] = [path for path in sys.argv[4].split(":") if path]
    names: dict = {"__name__": "tools"}
    ready: dict = {"id": 0}
    try:
        with open("tools.py", encoding="utf-8") as handle:
            exec(compile(handle.read(), "tools.py", "exec"), names)
    except BaseException as error:
        ready["error"] = f"{type(error).__name__}: {error}"[:4000]
        ready["traceback"] = tail(error)
    send(answers, ready)
    for line in requests:
        send(answers, answer(names, json.loads(line), limit))


def send(fd: int, reply: dict) -> None:
    data = memoryview(json.dumps(reply).encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
