"""What a run has: its processes, their memory, the files it made; how to end the first and take the last.

Used by the runner, on the standard library alone. `job["alone"]` says that this process is the first of a PID
namespace, so that all others belong to the run; `job["own_disk"]` that run folder and /tmp are file systems of their
own.
"""

from __future__ import annotations

import errno
import os
import stat
import time

SIGKILL, SIGSTOP = 9, 19
DEEPEST = 200
"""Folders within folders that are still counted; the time to walk a tree grows with the square of its depth."""


def processes(job: dict) -> list:
    """Every process of the run but this one."""
    if job["alone"]:
        return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    return descendants()


def descendants() -> list:
    """Children of this process, their children, and so on, by /proc."""
    parents: dict = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as handle:
                    parents[name] = handle.read().rpartition(b")")[2].split()[1].decode()
            except (OSError, IndexError):
                continue
    found, grew = {str(os.getpid())}, True
    while grew:
        grew = False
        for name, parent in parents.items():
            if parent in found and name not in found:
                found.add(name)
                grew = True
    found.discard(str(os.getpid()))
    return list(found)


def everyone(job: dict) -> None:
    """Kill every process of the run and collect it; how the step's own process ended is kept in `job["ended"]`.

    Alone in a PID namespace one signal reaches all at once. Elsewhere they are stopped first, so that none forks
    while the others are killed, and orphans are found because they become children of this process.
    """
    for _ in range(1000):
        if job["alone"]:
            try:
                os.kill(-1, SIGKILL)
            except ProcessLookupError:
                pass
        else:
            for signal in (SIGSTOP, SIGKILL):
                for name in descendants():
                    try:
                        os.kill(int(name), signal)
                    except ProcessLookupError:
                        pass
        if reap(job) is False:
            return
        time.sleep(0.001)


def reap(job: dict) -> bool:
    """Collect every child that has ended; False when there is no child left at all."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == job["main"]:
            job["ended"] = (status, usage)


def resident(pid: str) -> int:
    """Bytes of anonymous and shared memory of a process; pages of files on disk are not counted."""
    try:
        with open(f"/proc/{pid}/status", "rb") as handle:
            text = handle.read()
    except OSError:
        return 0
    total = 0
    for field in (b"RssAnon:", b"RssShmem:"):
        at = text.find(field)
        if at >= 0:
            total += int(text[at + len(field) : text.find(b"\n", at)].split()[0]) * 1024
    return total


def too_full(job: dict, ended: bool = False) -> bool:
    """Whether the run folder or /tmp holds too many files or bytes."""
    if not job["own_disk"]:
        return _walked(job["box"], job["inodes"], job["disk_bytes"], job["limits"]["FSIZE"] if ended else 0)
    for place in (job["box"], "/tmp"):
        use = os.statvfs(place)
        if use.f_files - use.f_ffree > job["inodes"] or (ended and use.f_bavail * use.f_frsize < 65536):
            return True
    return ended and any(
        _walked(place, job["inodes"], 1 << 62, job["limits"]["FSIZE"]) for place in (job["box"], "/tmp")
    )


def _walked(top: str, inodes: int, size: int, largest: int) -> bool:
    """Counts by walking: over `inodes` entries, over `size` bytes, one file that reached `largest`, or too deep."""
    count, total, folders, deepest = 0, 0, [top], top.count("/") + DEEPEST
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            count += 1
            if count > inodes:
                return True
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            total += info.st_blocks * 512
            if total > size or (largest and stat.S_ISREG(info.st_mode) and info.st_size >= largest):
                return True
            if stat.S_ISDIR(info.st_mode):
                if entry.path.count("/") > deepest:
                    return True
                folders.append(entry.path)
    return False


def collect(names: list, room: int) -> tuple[dict, dict]:
    """Regular files by name, no link followed, together at most `room` bytes; and why others were not taken."""
    found, refused = {}, {}
    for name in names:
        try:
            content = _taken(name, room)
        except OSError as error:
            refused[name] = "no such file" if error.errno == errno.ENOENT else error.strerror or "unreadable"
            continue
        if isinstance(content, str):
            refused[name] = content
        else:
            found[name] = content
            room -= len(content)
    return found, refused


def _taken(name: str, room: int):
    place = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        parts = name.split("/")
        for part in parts[:-1]:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = deeper
        fd = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return "not a regular file"
        if info.st_size > room:
            return f"too large: {info.st_size} bytes"
        return _all(fd, info.st_size)
    finally:
        os.close(fd)


def _all(fd: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
