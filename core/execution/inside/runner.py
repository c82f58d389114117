"""The first process of a sandbox: writes the files, runs the steps under limits, collects, and kills what is left.

Started as `python -I -S runner RESULT_FD`; a job comes on standard input as 8 bytes of length and a marshalled
dictionary. Standard input then stays open: when it closes, whoever asked is gone, and everything ends. The result goes
to RESULT_FD as lines and blobs (`write_result`). Only the standard library, and little of it: importing is most of the
cost of a launch.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource
import select
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))

from watch import SIGKILL, collect, everyone, processes, reap, resident, too_full  # noqa: E402

SIGXCPU, SIGXFSZ = 24, 25
SLOWEST_LOOK = 0.025
_MEMORY_WORDS = (b"MemoryError", b"bad_alloc", b"Cannot allocate memory", b"out of memory", b"memory exhausted")


class Outcome:
    """How one step ended, in the words of `core.execution.policy.Status`."""

    def __init__(self) -> None:
        self.status, self.code, self.wall, self.cpu, self.rss = "ok", 0, 0.0, 0.0, 0.0
        self.out, self.err, self.truncated = bytearray(), bytearray(), 0


def main(result_fd: int) -> None:
    job = _read_job(0)
    os.set_inheritable(result_fd, False)
    os.set_blocking(0, False)
    if job["dumpable"] is False:
        _hide()
    os.chdir(job["box"])
    for name, content in job["files"].items():
        _write(name, content)
    outcomes: list[Outcome] = []
    previous = None
    for step in job["steps"]:
        if step["only_if"] is not None and previous != step["only_if"]:
            outcomes.append(None)  # type: ignore[arg-type]
            continue
        outcomes.append(Step(job, step).run())
        previous = outcomes[-1].code if outcomes[-1].status in ("ok", "nonzero") else -1
    everyone(job)
    write_result(result_fd, outcomes, *collect(job["collect"], job["artifact_bytes"]))


def _read_job(fd: int) -> dict:
    size = int.from_bytes(_exactly(fd, 8), "little")
    return marshal.loads(_exactly(fd, size))


def _exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            os._exit(3)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _hide() -> None:
    """Nobody of the same user may read or write this process's memory."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _write(name: str, content: bytes) -> None:
    folder = os.path.dirname(name)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(name, "wb", buffering=0) as handle:
        handle.write(content)


class Step:
    """One command: started, fed, drained, watched, ended."""

    def __init__(self, job: dict, step: dict) -> None:
        self.job, self.step, self.found = job, step, Outcome()
        self.first_error = b""

    def run(self) -> Outcome:
        start = time.monotonic()
        try:
            self.pid, pipes = self._start()
        except OSError as error:
            self.found.status, self.found.err = "sandbox_error", bytearray(str(error).encode())
            return self.found
        status, usage = self._attend(pipes, start)
        self.found.wall = time.monotonic() - start
        self._judge(status, usage)
        return self.found

    def _start(self) -> tuple[int, tuple[int, int, int, int]]:
        out, out_child = os.pipe()
        err, err_child = os.pipe()
        in_child, into = os.pipe()
        failed, failed_child = os.pipe()
        self.job["ended"] = None
        self.job["main"] = pid = os.fork()
        if pid == 0:
            try:
                self._become(in_child, out_child, err_child, failed_child)
            except BaseException as error:
                os.write(self.failed, f"{self.missing} {type(error).__name__}: {error}".encode()[:500])
            finally:
                os._exit(127)
        for fd in (out_child, err_child, in_child, failed_child):
            os.close(fd)
        return pid, (out, err, into, failed)

    def _become(self, in_child: int, out_child: int, err_child: int, failed: int) -> None:
        os.setsid()
        for source, target in ((in_child, 0), (out_child, 1), (err_child, 2)):
            os.dup2(source, target)
        keep = sorted(self.job["keep"])
        self.failed, self.missing = os.dup2(failed, max([200, *keep]) + 1, inheritable=False), 0
        low = 3
        for fd in [*keep, self.failed]:
            os.closerange(low, fd)
            if fd != self.failed:
                os.set_inheritable(fd, True)
            low = fd + 1
        os.closerange(low, 65536)
        for name, value in self.job["limits"].items():
            kind = getattr(resource, "RLIMIT_" + name)
            hard = resource.getrlimit(kind)[1]
            wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (wanted, wanted + 1 if name == "CPU" and wanted != hard else wanted))
        os.umask(0o077)
        if self.job["landlock"] is not None:
            import landlock

            landlock.restrict(**self.job["landlock"])
            landlock.install_filter(self.job["seccomp"])
        argv = self.step["argv"]
        try:
            os.execvpe(argv[0], argv, self.job["env"])
        except OSError as error:
            self.missing = int(error.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR))
            raise

    def _attend(self, pipes: tuple[int, int, int, int], start: float):
        """Feed, drain and watch until the command ends or a limit does; then nothing of it is left."""
        job, (out, err, into, failed) = self.job, pipes
        given, poll = memoryview(self.step["stdin"]), select.poll()
        for fd in pipes:
            os.set_blocking(fd, False)
        watched = {out: self.found.out, err: self.found.err, failed: None}
        for fd in watched:
            poll.register(fd, select.POLLIN)
        poll.register(0, select.POLLIN)
        if given:
            poll.register(into, select.POLLOUT)
        else:
            os.close(into)
            into = -1
        ended = _pidfd(self.pid)
        if ended >= 0:
            poll.register(ended, select.POLLIN)
        look, deadline, done = 0.004, start + self.step["wall"], None
        next_look = start + look
        while done is None:
            now = time.monotonic()
            until = min(deadline, next_look)
            for fd, _ in poll.poll(max(0, until - now) * 1000):
                if fd in watched:
                    self._drain(fd, watched, poll)
                elif fd == into:
                    into, given = _feed(into, given, poll)
                elif fd == 0 and not _alive():
                    everyone(job)
                    os._exit(4)
            reap(job)
            done = job["ended"]
            now = time.monotonic()
            if done is None and now >= next_look:
                look = min(look * 2, SLOWEST_LOOK)
                next_look = now + look
                self._watch()
            if done is None and now >= deadline and self.found.status == "ok":
                self.found.status = "timeout"
            if done is None and self.found.status != "ok":
                everyone(job)
                done = job["ended"]
        everyone(job)
        for fd in list(watched):
            self._drain(fd, watched, poll, last=True)
        for fd in (into, ended):
            if fd >= 0:
                os.close(fd)
        return done

    def _drain(self, fd: int, watched: dict, poll, last: bool = False) -> None:
        while fd in watched:
            try:
                part = os.read(fd, 65536)
            except BlockingIOError:
                if not last:
                    return
                part = b""
            if not part:
                poll.unregister(fd)
                os.close(fd)
                del watched[fd]
            elif watched[fd] is None:
                self.first_error = part
            else:
                room = self.job["output_bytes"] - len(self.found.out) - len(self.found.err)
                watched[fd] += part[: max(0, room)]
                if len(part) > room:
                    self.found.truncated = 1
                    if self.found.status == "ok":
                        self.found.status = "output_limit"
                    if not last:
                        return

    def _watch(self) -> None:
        job = self.job
        rss = 0
        for pid in processes(job):
            rss += resident(pid)
        self.found.rss = max(self.found.rss, rss / 1048576)
        if rss > job["memory_bytes"]:
            self.found.status = "memory"
        elif too_full(job):
            self.found.status = "disk_limit"

    def _judge(self, status: int, usage) -> None:
        found = self.found
        found.cpu = usage.ru_utime + usage.ru_stime
        found.rss = max(found.rss, usage.ru_maxrss / 1024)
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        found.code = -signal if signal else os.WEXITSTATUS(status)
        if self.first_error:
            missing, _, message = self.first_error.partition(b" ")
            found.status, found.err = "tool_missing" if missing == b"1" else "sandbox_error", bytearray(message)
        elif found.status != "ok" or found.code == 0:
            return
        elif signal == SIGXCPU or (signal == SIGKILL and found.cpu >= self.job["limits"]["CPU"]):
            found.status = "timeout"
        elif signal == SIGXFSZ or too_full(self.job, ended=True):
            found.status = "disk_limit"
        elif any(word in found.err[-4000:] for word in _MEMORY_WORDS):
            found.status = "memory"
        else:
            found.status = "killed" if signal else "nonzero"


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _feed(into: int, given, poll):
    try:
        given = given[os.write(into, given[:65536]) :]
    except BlockingIOError:
        return into, given
    except OSError:
        given = given[len(given) :]
    if not given:
        poll.unregister(into)
        os.close(into)
        into = -1
    return into, given


def _alive() -> bool:
    """Whether whoever asked still holds the other end of standard input."""
    try:
        return os.read(0, 1) != b""
    except BlockingIOError:
        return True


def write_result(fd: int, outcomes: list, found: dict, refused: dict) -> None:
    """Lines that say what follows, an empty line, then the blobs in the same order."""
    lines, blobs = [], []
    for o in outcomes:
        if o is None:
            lines.append("skipped")
            continue
        out, err = bytes(o.out), bytes(o.err)
        lines.append(
            f"step {o.status} {o.code} {o.wall:.6f} {o.cpu:.6f} {o.rss:.3f} {o.truncated} {len(out)} {len(err)}"
        )
        blobs += [out, err]
    for name, content in found.items():
        lines.append(f"artifact {name.encode().hex()} {len(content)}")
        blobs.append(content)
    for name, reason in refused.items():
        lines.append(f"refused {name.encode().hex()} {reason.encode().hex()}")
    data = memoryview(("\n".join(lines) + "\n\n").encode() + b"".join(blobs))
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
