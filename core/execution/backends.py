"""The four ways into isolation, best first, and how each one is started.

    bwrap      strict   bubblewrap: namespaces, read-only /usr, memory-backed run folder, seccomp
    unshare    strict   the same view, mounted by `inside/namespace.py`
    landlock   medium   no namespaces: Landlock for files and signals, seccomp without sockets, limits
    rlimit     weak     limits and the killing of processes, no isolation of files or network

Each builds the command that starts `inside/runner.py` within its walls. Run by root, every one first becomes user
65534.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import marshal
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import SandboxError
from core.execution import seccomp
from core.execution.policy import Level, Policy
from core.execution.tools import ToolMissing, tool

NOBODY = 65534
INSIDE = Path(__file__).parent / "inside"
_SYSTEM_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES = ("/etc/alternatives", "/etc/ld.so.cache")
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Launch:
    """A command that starts a runner, and what the runner is told about where it is.

    Args:
        argv: the command; RESULT is replaced by the number of the result's file descriptor.
        fds: descriptors the command inherits, closed by whoever started it. job: the runner's own facts.
        folder: a run folder on the host's disk, to be removed afterwards; None when it is inside.
    """

    argv: list[str]
    fds: list[int] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None


RESULT = "{result}"


class Bwrap:
    """Bubblewrap. Works as root and as an ordinary user, wherever user namespaces are allowed."""

    name, level = "bwrap", "strict"

    def launch(self, policy: Policy) -> Launch:
        python, prefix = interpreter()
        program = os.open(_filter_file(policy.net, True, True, True), os.O_RDONLY)
        size = str(policy.tmp_mb << 20)
        view = [w for path in _SYSTEM_LINKS for w in _link_or_bind(path)]
        for path in (*_SYSTEM_FILES, *(_NETWORK_FILES if policy.net else ())):
            view += ["--ro-bind-try", path, path]
        for path in (*prefix, *policy.ro):
            view += ["--ro-bind", path, path]
        for path in (*_DEVICES, *policy.devices):
            view += ["--dev-bind", path, path]
        argv = [
            *_as_nobody(), tool("bwrap").path, "--unshare-all", *(["--share-net"] if policy.net else []),
            "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "box", "--die-with-parent", "--new-session",
            "--as-pid-1", "--cap-drop", "ALL", "--clearenv", "--ro-bind", "/usr", "/usr",
            # before what is visible, some of which may lie below /tmp
            "--size", size, "--tmpfs", "/tmp", "--size", size, "--tmpfs", "/box", *view,
            "--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/tmp", "/dev/shm", "--proc", "/proc",
            "--ro-bind", str(_compiled(python)), "/run/graft", "--remount-ro", "/", "--chdir", "/",
            "--seccomp", str(program), python, "-I", "-S", "/run/graft/runner.pyc", RESULT,
        ]  # fmt: skip
        return Launch(argv, [program], {"box": "/box", "alone": True, "own_disk": True, **_UNCONFINED})


class Unshare:
    """util-linux's unshare with mounts of our own."""

    name, level = "unshare", "strict"

    def launch(self, policy: Policy) -> Launch:
        if policy.net:
            raise SandboxError("this backend has no network to share", hint="install bubblewrap, or leave net off")
        python, prefix = interpreter()
        links = {path: os.readlink(path) for path in _SYSTEM_LINKS if os.path.islink(path)}
        plain = [path for path in _SYSTEM_LINKS if os.path.isdir(path) and path not in links]
        places = _compiled(python)
        spec = {
            "root": str(places / "root"),
            "links": links,
            "read": ["/usr", *plain, *_SYSTEM_FILES, *prefix, *policy.ro],
            "devices": [*_DEVICES, *policy.devices],
            "box": "/box",
            "disk_bytes": policy.tmp_mb << 20,
            "inodes": policy.max_inodes,
            "seccomp": seccomp.program(),
        }
        told = os.memfd_create("spec")
        os.write(told, marshal.dumps(spec, 2))
        os.lseek(told, 0, os.SEEK_SET)
        argv = [
            *_as_nobody(), tool("unshare").path, "--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc",
            "--uts", "--fork", "--kill-child=KILL", python, "-I", "-S",
            str(places / "namespace.pyc"), RESULT, str(told),
        ]  # fmt: skip
        return Launch(argv, [told], {"box": "/box", "alone": True, "own_disk": True, **_UNCONFINED})


class Landlock:
    """Landlock, seccomp and limits on a run folder of the host's disk, for containers that forbid namespaces."""

    name, level = "landlock", "medium"

    def launch(self, policy: Policy) -> Launch:
        from core.execution.inside import landlock

        version = landlock.abi()
        if version == 0:
            raise SandboxError("the kernel has no Landlock (5.13 brought it), or it is switched off")
        scoped = version >= landlock.SCOPES_SIGNALS
        program = seccomp.program(net=policy.net, unix_sockets=False, signals=scoped, metadata=False)
        python, prefix = interpreter()
        folder = _run_folder()
        read = ["/usr", *_SYSTEM_LINKS, *_SYSTEM_FILES, *prefix, *policy.ro]
        confined = {
            "read": [*read, *(_NETWORK_FILES if policy.net else ())],
            "write": [folder],
            "files": [*_DEVICES, *policy.devices],
            "version": version,
            "net": policy.net,
        }
        return _plain(folder, python, {"landlock": confined, "seccomp": program})


class Rlimit:
    """Limits only. Nothing stands between the program and the files and network of this user."""

    name, level = "rlimit", "weak"

    def launch(self, policy: Policy) -> Launch:
        python, _ = interpreter()
        return _plain(_run_folder(), python, _UNCONFINED)


BACKENDS: tuple[Bwrap | Unshare | Landlock | Rlimit, ...] = (Bwrap(), Unshare(), Landlock(), Rlimit())
_UNCONFINED: dict[str, Any] = {"landlock": None, "seccomp": b""}


def backend(name: str) -> Any:
    """The backend called `name`."""
    for known in BACKENDS:
        if known.name == name:
            return known
    raise SandboxError(f"unknown backend '{name}'", hint=f"known: {', '.join(b.name for b in BACKENDS)}")


def levels_at_least(level: Level) -> list[Any]:
    """The backends that isolate at least as well as `level`, best first."""
    order = {"weak": 0, "medium": 1, "strict": 2}
    return [b for b in BACKENDS if order[b.level] >= order[level]]


def _plain(folder: str, python: str, confinement: dict[str, Any]) -> Launch:
    job = {"box": folder + "/box", "alone": False, "own_disk": False, **confinement}
    argv = [*_as_nobody(), python, "-I", "-S", str(_compiled(python) / "runner.pyc"), RESULT]
    return Launch(argv, [], job, folder)


def _as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    user = str(NOBODY)
    return [tool("setpriv").path, "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]


def _link_or_bind(path: str) -> list[str]:
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path] if os.path.isdir(path) else []


def _run_folder() -> str:
    """A new folder `…/box` and `…/box/tmp` that only the runner's user may enter."""
    folder = tempfile.mkdtemp(prefix="graft-box-")
    for path in (folder, folder + "/box", folder + "/box/tmp"):
        os.makedirs(path, mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    return folder


def remove_folder(folder: str) -> None:
    """Remove a run folder whatever was planted in it: folders without rights, or nested deeper than Python recurses."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        if os.path.exists(folder):
            subprocess.run([*command, folder], capture_output=True, check=False)


@functools.cache
def interpreter() -> tuple[str, tuple[str, ...]]:
    """A Python that the sandbox's user can start, and the folders outside /usr that it needs.

    Raises:
        SandboxError: there is none, as when root's only Python lies in root's home.
    """
    base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    for path in (base, "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path) and _reachable(os.path.realpath(path)):
            if path != base or base.startswith("/usr/"):
                return path, ()
            return path, (os.path.realpath(sys.base_prefix),)
    raise SandboxError(
        f"no Python that user {NOBODY} can start: {base} is in a folder that only root enters",
        hint="apt-get install python3-minimal, or do not run as root",
    )


def _reachable(path: str) -> bool:
    """Whether an ordinary user, or this one when it is not root, may walk to `path` and execute it."""
    if os.geteuid() != 0:
        return os.access(path, os.X_OK)
    places = [Path(path), *Path(path).parents]
    return all(place.stat().st_mode & stat.S_IXOTH for place in places)


@functools.lru_cache(maxsize=4)
def _compiled(python: str) -> Path:
    """A folder with the inner files compiled for `python`: compiling them at each launch would double its cost."""
    folder = Path(tempfile.mkdtemp(prefix="graft-inside-"))
    atexit.register(shutil.rmtree, folder, True)
    folder.chmod(0o755)
    names = sorted(path.stem for path in INSIDE.glob("*.py") if path.stem != "__init__")
    code = (
        "import py_compile, sys\n"
        "for name in sys.argv[3:]: py_compile.compile(f'{sys.argv[1]}/{name}.py', f'{sys.argv[2]}/{name}.pyc',"
        " doraise=True)"
    )
    command = [python, "-I", "-S", "-c", code, str(INSIDE), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SandboxError(f"the runner does not compile with {python}", hint=done.stderr.strip()[-300:] or None)
    (folder / "root").mkdir()
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@functools.cache
def _filter_file(net: bool, unix_sockets: bool, signals: bool, metadata: bool) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="graft-filter-")
    atexit.register(lambda: Path(name).unlink(missing_ok=True))
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(seccomp.program(net=net, unix_sockets=unix_sockets, signals=signals, metadata=metadata))
    return Path(name)


def why_not(candidate: Any, policy: Policy) -> str | None:
    """Why a backend cannot even be started here; None when it may."""
    if platform.system() != "Linux":
        return "only Linux has these mechanisms"
    try:
        launch = candidate.launch(policy)
    except (SandboxError, ToolMissing) as error:
        return f"{error.what}. {error.hint}" if error.hint else error.what
    for fd in launch.fds:
        os.close(fd)
    if launch.folder:
        remove_folder(launch.folder)
    return None
