"""A launch in progress: a process that is fed its job, watched from outside, and read.

The runner inside enforces the limits of the steps; here is the outer limit, which holds even if the runner is lost,
and the reading of what it wrote.
"""

from __future__ import annotations

import marshal
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast, get_args

from core.errors import SandboxError
from core.execution import backends
from core.execution.backends import RESULT, Launch
from core.execution.policy import ExecResult, Status, StepResult


class Running:
    """A launch in progress: the process, the job going in, the result coming out."""

    def __init__(self, launch: Launch, job: dict[str, Any], keep: Sequence[int] = ()) -> None:
        self.launch, self.said = launch, ""
        job = {**job, **launch.job, "keep": list(keep)}
        tmp = "/tmp" if launch.folder is None else job["box"] + "/tmp"
        job["env"] = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": job["box"], "TMPDIR": tmp,
            "PYTHONHASHSEED": "0",
            "USER": "nobody",  # libraries ask who they run as, and the user may have no entry that the sandbox sees
            **job["env"],
        }  # fmt: skip
        body = marshal.dumps(job, 2)
        self._job = memoryview(len(body).to_bytes(8, "little") + body)
        self._result, theirs = os.pipe()
        argv = [str(theirs) if word == RESULT else word for word in launch.argv]
        try:
            self.process = _spawner().submit(_start, argv, (theirs, *launch.fds, *keep)).result()
        except BaseException:
            os.close(self._result)
            self._clean()
            raise
        finally:
            for fd in (theirs, *launch.fds):
                os.close(fd)

    def finish(self, deadline: float, most: int) -> bytes | None:
        """The runner's result; None when the launch outlived `deadline`, failed, or said more than `most` bytes."""
        result, errors = bytearray(), bytearray()
        assert self.process.stdin is not None and self.process.stderr is not None
        into = self.process.stdin.fileno()
        complete = False
        with selectors.DefaultSelector() as selector:
            for fd in (into, self._result, self.process.stderr.fileno()):
                os.set_blocking(fd, False)
            selector.register(self._result, selectors.EVENT_READ, result)
            selector.register(self.process.stderr, selectors.EVENT_READ, errors)
            selector.register(into, selectors.EVENT_WRITE)
            while (left := deadline - time.monotonic()) > 0 and len(result) <= most:
                for key, _ in selector.select(left):
                    if key.fd == into:
                        self._send(selector)
                    elif not self._receive(key, selector) and key.fd == self._result:
                        complete = True
                del errors[1 << 16 :]
                if complete:
                    break
        self.stop()
        self.said = errors[:2000].decode("utf-8", "replace").strip()
        return bytes(result) if complete else None

    def send_job(self) -> None:
        """Give the runner its whole job, waiting as long as that takes."""
        assert self.process.stdin is not None
        try:
            while self._job:
                self._job = self._job[os.write(self.process.stdin.fileno(), self._job) :]
        except OSError as error:
            raise SandboxError(f"the sandbox did not start: {error}") from error

    def stop(self) -> None:
        """End the launch and everything in it. Harmless when it has ended."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            try:
                self.process.wait(0.25)
            except subprocess.TimeoutExpired:
                self._kill()
        if self.process.stderr is not None:
            self.process.stderr.close()
        if self._result >= 0:
            os.close(self._result)
            self._result = -1
        self._clean()

    def _kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def _clean(self) -> None:
        if self.launch.folder is not None:
            backends.remove_folder(self.launch.folder)

    def _send(self, selector: selectors.BaseSelector) -> None:
        assert self.process.stdin is not None
        fd = self.process.stdin.fileno()
        try:
            self._job = self._job[os.write(fd, self._job[: 1 << 16]) :]
        except BlockingIOError:
            return
        except OSError:
            self._job = self._job[len(self._job) :]
        if not self._job:
            selector.unregister(fd)

    @staticmethod
    def _receive(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> bool:
        try:
            part = os.read(key.fd, 1 << 16)
        except BlockingIOError:
            return True
        if not part:
            selector.unregister(key.fileobj)
            return False
        key.data.extend(part)
        return True


def parse_result(data: bytes) -> ExecResult:
    """The lines and blobs that `inside/runner.py` writes. Raises `ValueError` for anything else."""
    head, separator, blobs = data.partition(b"\n\n")
    if not separator:
        raise ValueError("no end of the head")
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(blobs):
            raise ValueError("a blob is cut")
        at += size
        return blobs[at - size : at]

    steps: list[StepResult] = []
    artifacts: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    for line in filter(None, head.decode("ascii").split("\n")):
        kind, *rest = line.split(" ")
        if kind == "skipped":
            steps.append(StepResult("ok", skipped=True))
        elif kind == "step":
            word, code, wall, cpu, rss, truncated, out, err = rest
            if word not in get_args(Status):
                raise ValueError(f"unknown status {word!r}")
            status = cast(Status, word)
            number = int(code)
            rc, by = (number, None) if number >= 0 else (None, -number)
            steps.append(
                StepResult(
                    status,
                    rc,
                    by,
                    float(wall),
                    float(cpu),
                    float(rss),
                    take(int(out)),
                    take(int(err)),
                    truncated == "1",
                )  # fmt: skip
            )
        elif kind == "artifact":
            artifacts[bytes.fromhex(rest[0]).decode()] = take(int(rest[1]))
        elif kind == "refused":
            refused[bytes.fromhex(rest[0]).decode()] = bytes.fromhex(rest[1]).decode("utf-8", "replace")
        else:
            raise ValueError(f"unknown line {kind!r}")
    first_bad: Status = next((s.status for s in steps if s.status != "ok"), "ok")
    return ExecResult(first_bad, tuple(steps), artifacts, refused)


def _start(argv: list[str], fds: Sequence[int]) -> subprocess.Popen:
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=fds, cwd="/",
        env={"PATH": "/usr/bin:/bin"}, start_new_session=True, bufsize=0,
    )  # fmt: skip


_LOCK = threading.Lock()
_THREAD: list[ThreadPoolExecutor] = []


def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts processes: a child told to die with its parent dies with the thread that made it."""
    with _LOCK:
        if not _THREAD:
            _THREAD.append(ThreadPoolExecutor(1, thread_name_prefix="graft-spawn"))
        return _THREAD[0]


def _forget_spawner() -> None:
    global _LOCK
    _LOCK = threading.Lock()
    _THREAD.clear()


os.register_at_fork(after_in_child=_forget_spawner)
