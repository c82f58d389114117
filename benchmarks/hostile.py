"""Programs that try to get out of a sandbox, or to hurt the machine it runs on, and what must come of each.

Every program is Python that prints ESCAPED where it got what it wanted. The host holds bait: a secret file, a folder
that everybody may write, a process to kill, and servers on TCP, UDP and two kinds of Unix socket. After each run
`Host.harm` says what changed: bait taken, a process or a run folder left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.execution import ExecResult, Policy, Sandbox, Step
from core.execution.backends import NOBODY, interpreter

MARK = "graft-hostile-program"
WALL = 1.0
LIMITS = dict(
    wall_s=4.0, cpu_s=4.0, mem_mb=200, tmp_mb=24, fsize_mb=8, max_procs=24, max_fds=64, max_output_kb=64,
    max_inodes=2000, max_artifact_mb=8,
)  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """A program and its due.

    Args:
        source: Python; `BAIT`, `TCP`, `UDP`, `VICTIM` and `ABSTRACT` name the host's bait; `call(nr, …)` is a raw
            system call that gives -1 for an error.
        status: the statuses that are right. claimed: the weakest level that promises to hold it.
        wall_s: its limit; the end must come within a second of it. collect: artifacts that it plants.
        refused: whether those artifacts must be refused.
    """

    name: str
    source: str
    status: frozenset[str]
    claimed: str = "medium"
    wall_s: float = 4.0
    collect: tuple[str, ...] = ()
    refused: bool = False


@dataclass
class Outcome:
    """How an attack went: the problems are empty when it was held."""

    attack: Attack
    result: ExecResult
    seconds: float
    problems: list[str] = field(default_factory=list)


_PRELUDE = """
import ctypes, os, sys, time, socket, struct, signal, threading, mmap
BAIT, TCP, UDP, VICTIM, ABSTRACT = {bait!r}, {tcp}, {udp}, {victim}, {abstract!r}
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
def call(x86, arm, *args):
    return libc.syscall(x86 if X86 else arm, *args)
def escaped(what=""):
    print("ESCAPED", what, flush=True)
def tried(function, *args):
    try:
        return function(*args)
    except BaseException as error:
        print("held:", type(error).__name__, error)
"""

_ANY = frozenset({"ok", "nonzero"})


def _attack(name: str, source: str, status: str = "ok nonzero", claimed: str = "medium", **more) -> Attack:
    return Attack(name, textwrap.dedent(source), frozenset(status.split()), claimed, **more)


RESOURCES = [
    _attack("busy loop", "while True: pass", "timeout", "weak", wall_s=WALL),
    _attack(
        "sleeper that ignores every signal",
        "for n in range(1, 64): tried(signal.signal, n, signal.SIG_IGN)\nwhile True: time.sleep(9)",
        "timeout",
        "weak",
        wall_s=WALL,
    ),
    _attack("closes its output and sleeps", "os.close(1); os.close(2); time.sleep(60)", "timeout", "weak", wall_s=WALL),
    _attack("stops itself", "os.kill(os.getpid(), signal.SIGSTOP)", "timeout killed nonzero", "weak", wall_s=WALL),
    _attack("prints for ever", "while True: print('x' * 1000)", "output_limit", "weak"),
    _attack("prints for ever to the error stream", "while True: os.write(2, b'e' * 4096)", "output_limit", "weak"),
    _attack("100 MB of output at once", "sys.stdout.write('y' * 100_000_000)", "output_limit memory", "weak"),
    _attack("10 GB at once", "x = bytearray(10 << 30); escaped()", "memory", "weak"),
    _attack("many small objects", "x = []\nwhile True: x.append(bytearray(1 << 16))", "memory", "weak"),
    _attack(
        "many children, each a little memory",
        "for _ in range(12):\n    if os.fork() == 0:\n"
        "        x = bytearray(os.urandom(1 << 16)) * 640; time.sleep(60)\n"
        "time.sleep(60)",
        "memory",
        "weak",
    ),
    _attack(
        "shared anonymous memory",
        "kept = []\nwhile True:\n    m = mmap.mmap(-1, 16 << 20); m.write(b'z' * (16 << 20)); kept.append(m)",
        "memory",
        "weak",
    ),
    _attack("memory file", "fd = call(319, 279, b'x', 0)\nif fd >= 0: escaped('memfd')", "ok"),
    _attack("System V memory", "if call(29, 194, 0, 1 << 20, 0o1600) >= 0: escaped('shmget')", "ok"),
    _attack(
        "fork bomb",
        "while True:\n    try: os.fork()\n    except OSError: time.sleep(0.01)",
        "timeout memory killed",
        "weak",
        wall_s=WALL,
    ),
    _attack(
        "more processes than allowed",
        "n = 0\ntry:\n    for n in range(200):\n        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
        "except OSError: pass\nif n > 30: escaped(n)",
        "ok memory",
        "weak",
    ),
    _attack(
        "thread bomb",
        "n = 0\ntry:\n    for n in range(500): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError: pass\nif n > 40: escaped(n)\nos._exit(0)",
        "ok",
        "weak",
    ),
    _attack(
        "file descriptor bomb",
        "n = 0\ntry:\n    while True: os.open('/dev/null', 0); n += 1\nexcept OSError: pass\nif n > 64: escaped(n)",
        "ok",
        "weak",
    ),
    _attack(
        "10 GB file", "f = open('big', 'wb')\nfor _ in range(10240): f.write(b'0' * (1 << 20))", "disk_limit", "weak"
    ),  # fmt: skip
    _attack("sparse giant", "f = open('big', 'wb'); f.truncate(1 << 40); escaped()", "disk_limit nonzero", "weak"),
    _attack(
        "many files that fill the disk",
        "for i in range(10000):\n    with open(f'f{i}', 'wb') as f: f.write(b'0' * (1 << 20))",
        "disk_limit",
        "weak",
    ),
    _attack(
        "100,000 small files",
        "for i in range(100000): open(f's{i}', 'w').close()\ntime.sleep(60)",
        "disk_limit",
        "weak",
    ),  # fmt: skip
    _attack(
        "folders nested deeper than anybody recurses",
        "try:\n    for _ in range(1900): os.mkdir('d'); os.chdir('d')\nexcept OSError: pass",
        "ok disk_limit",
        "weak",
    ),
    _attack("core dump", "os.abort()", "killed", "weak", collect=("core",), refused=True),
]

LEFTOVERS = [
    _attack(
        "daemon that forks twice and waits",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(2); open(BAIT + '/open/late', 'w').write('x')\n    os._exit(0)",
        "ok",
        "weak",
    ),
    _attack(
        "daemon that keeps the output open",
        "if os.fork() == 0:\n    os.setsid(); time.sleep(60)",
        "ok",
        "weak",
    ),
    _attack(
        "child that ignores every signal",
        "if os.fork() == 0:\n    for n in range(1, 64): tried(signal.signal, n, signal.SIG_IGN)\n    time.sleep(60)",
        "ok",
        "weak",
    ),
    _attack(
        "folder without rights",
        "os.mkdir('locked'); open('locked/x', 'w').close(); os.chmod('locked', 0)",
        "ok nonzero",
        "weak",
    ),  # fmt: skip
    _attack("FIFO as artifact", "os.mkfifo('out')", "ok", "weak", collect=("out",), refused=True),
    _attack(
        "symbolic link as artifact", "os.symlink(BAIT + '/secret', 'out')", "ok", "weak", collect=("out",), refused=True
    ),  # fmt: skip
    _attack(
        "symbolic link as an artifact's folder",
        "os.symlink(BAIT, 'd')",
        "ok",
        "weak",
        collect=("d/secret",),
        refused=True,
    ),  # fmt: skip
    _attack("device as artifact", "os.symlink('/dev/zero', 'out')", "ok", "weak", collect=("out",), refused=True),
    _attack(
        "artifact that is too large",
        "for n in 'ab':\n    with open(n, 'wb') as f: f.write(b'0' * ((8 << 20) - 4096))",
        "ok",
        "weak",
        collect=("a", "b"),
        refused=True,
    ),
    _attack(
        "hard link to a host file as artifact",
        "tried(os.link, BAIT + '/open/own', 'out')",
        "ok",
        collect=("out",),
        refused=True,
    ),
    _attack(
        "forged result on every descriptor",
        "for fd in range(3, 256):\n    try: os.write(fd, b'step ok 0 0 0 0 0 0 0\\n\\n'); escaped(fd)\n"
        "    except OSError: pass\nsys.exit(7)",
        "nonzero",
        "weak",
    ),
]

FILES = [
    _attack("reads a host file", "tried(lambda: escaped(open(BAIT + '/secret').read()))"),
    _attack("writes into a host folder", "tried(lambda: open(BAIT + '/open/new', 'w').write('x'))"),
    _attack("changes the rights of a host file", "tried(os.chmod, BAIT + '/open/own', 0o777)"),
    _attack("changes the times of a host file", "tried(os.utime, BAIT + '/open/own', (1, 1))"),
    _attack("removes a host file", "tried(os.remove, BAIT + '/open/own')"),
    _attack("cuts a host file", "tried(os.truncate, BAIT + '/open/own', 0)"),
    _attack("writes to /usr", "tried(lambda: escaped(open('/usr/graft-was-here', 'w').write('x')))"),
    _attack("lists home", "tried(lambda: escaped(os.listdir(os.path.expanduser('~root'))))"),
    _attack("reads the password file", "tried(lambda: escaped(open('/etc/shadow').read()))"),
    _attack(
        "reads the disk",
        "for d in ('vda', 'sda', 'mem', 'kmem', 'nvme0n1'):\n"
        "    tried(lambda: escaped(os.read(os.open('/dev/' + d, 0), 16)))",
    ),  # fmt: skip
    _attack(
        "reads the first process's environment", "tried(lambda: escaped(open('/proc/1/environ', 'rb').read() or 1))"
    ),  # fmt: skip
    _attack(
        "climbs through /proc/*/root and cwd",
        "for p in ('1', str(os.getppid()), 'self'):\n    for d in ('root', 'cwd'):\n"
        "        tried(lambda: escaped(open(f'/proc/{p}/{d}' + BAIT + '/secret').read()))",
    ),
    _attack("sets the core pattern", "tried(lambda: escaped(open('/proc/sys/kernel/core_pattern', 'w').write('|x')))"),
    _attack(
        "opens a file by handle",
        "if call(304, 265, -100, b'\\0' * 128, 0) >= 0: escaped()\n"
        "if ctypes.get_errno() != 1: escaped(ctypes.get_errno())",
    ),  # fmt: skip
]

PROCESSES = [
    _attack("kills its parent", "tried(os.kill, os.getppid(), 9); time.sleep(0.1)"),
    _attack("kills everybody", "tried(os.kill, -1, 9); time.sleep(0.1)", "ok nonzero killed"),
    _attack("kills a process of the host", "tried(os.kill, VICTIM, 9)"),
    _attack("traces its parent", "if call(101, 117, 16, os.getppid(), 0, 0) == 0: escaped()"),
    _attack("reads its parent's memory", "tried(lambda: escaped(open(f'/proc/{os.getppid()}/mem', 'rb+')))"),
    _attack(
        "reads memory across processes",
        "b = ctypes.create_string_buffer(8)\nv = struct.pack('QQ', ctypes.addressof(b), 8)\n"
        "if call(310, 270, os.getppid(), v, 1, v, 1, 0) >= 0: escaped()",
    ),
    _attack(
        "sets its parent's limits",
        "l = struct.pack('QQ', 0, 0)\nif call(302, 261, os.getppid(), 0, l, 0) == 0: escaped()",
    ),  # fmt: skip
    _attack(
        "steals a descriptor",
        "fd = call(434, 434, os.getppid(), 0)\nif fd >= 0 and call(438, 438, fd, 1, 0) >= 0: escaped()",
    ),  # fmt: skip
    _attack(
        "types into the terminal",
        "import fcntl\nfor fd in (0, 1, 2):\n    tried(lambda: escaped(fcntl.ioctl(fd, 0x5412, b'x')))",
    ),  # fmt: skip
]

NETWORK = [
    _attack("connects to the host by TCP", "tried(lambda: escaped(socket.create_connection(('127.0.0.1', TCP), 1)))"),
    _attack("sends to the host by UDP",
            "tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP)))"),
    _attack("connects to an abstract socket",
            "tried(lambda: (s := socket.socket(socket.AF_UNIX)).connect(ABSTRACT) or escaped())"),
    _attack("connects to a socket file",
            "tried(lambda: (s := socket.socket(socket.AF_UNIX)).connect(BAIT + '/open/socket') or escaped())"),
    _attack("opens a raw socket", "tried(lambda: escaped(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)))"),
    _attack("opens a netlink socket", "tried(lambda: escaped(socket.socket(16, socket.SOCK_RAW, 0)))"),
]  # fmt: skip

KERNEL = [
    _attack("new user namespace", "if libc.unshare(0x10000000) == 0: escaped()"),
    _attack("clone into a new namespace", "if call(56, 220, 0x10000000 | 17, 0, 0, 0, 0) >= 0: escaped()"),
    _attack(
        "clone3",
        "a = struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0)\nif call(435, 435, a, len(a)) >= 0: escaped()",
    ),  # fmt: skip
    _attack("mounts", "if libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0: escaped()"),
    _attack("new mount interface", "if call(430, 430, b'tmpfs', 0) >= 0: escaped()"),
    _attack("changes its root", "tried(lambda: escaped(os.chroot('.')))"),
    _attack(
        "has rights of root",
        "s = open('/proc/self/status').read() if os.path.exists('/proc/self/status') else 'CapEff:\\t0\\n'\n"
        "if int(s.split('CapEff:')[1].split()[0], 16): escaped(s)\n"
        "if libc.prctl(39, 0, 0, 0, 0) != 1: escaped('new privileges')",
    ),
    _attack("key ring", "if call(248, 217, b'user', b'k', b'v', 1, -3) >= 0: escaped()"),
    _attack("bpf", "if call(321, 280, 0, b'\\0' * 64, 64) >= 0 or ctypes.get_errno() != 1: escaped()"),
    _attack("perf events", "if call(298, 241, b'\\0' * 128, 0, -1, -1, 0) >= 0 or ctypes.get_errno() != 1: escaped()"),
    _attack("userfaultfd", "if call(323, 282, 1) >= 0: escaped()"),
    _attack("io_uring", "if call(425, 425, 1, b'\\0' * 128) >= 0 or ctypes.get_errno() != 1: escaped()"),
    _attack(
        "system calls of the 32-bit table",
        """
        if X86:
            m = mmap.mmap(-1, 4096, prot=7)
            m.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))
            f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
            print(f()); escaped()
        """,
        "killed ok",
    ),
    _attack("system calls of the x32 table", "if X86:\n    libc.syscall(0x40000000 + 39); escaped()", "killed ok"),
]

ATTACKS = [*RESOURCES, *LEFTOVERS, *FILES, *PROCESSES, *NETWORK, *KERNEL]
_ORDER = {"weak": 0, "medium": 1, "strict": 2}


class Host:
    """The bait on this machine, and the look afterwards."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="graft-bait-"))
        self.folder.chmod(0o755)
        (self.folder / "secret").write_text("the secret")
        (self.folder / "open").mkdir()
        (self.folder / "open").chmod(0o777)
        own = self.folder / "open" / "own"
        own.write_text("mine")
        if os.geteuid() == 0:
            os.chown(own, NOBODY, NOBODY)
        own.chmod(0o600)
        self.expected = self._look()
        # run folders of other processes that are at work here are not ours to judge
        self.temporary, self._outer = Path(tempfile.mkdtemp(prefix="graft-attacked-")), tempfile.tempdir
        self.temporary.chmod(0o755)
        tempfile.tempdir = str(self.temporary)
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self.victim = subprocess.Popen(["sleep", "3600"], cwd="/", **user)
        self.visits: list[str] = []
        self.abstract = f"\0graft-bait-{os.getpid()}"
        self._sockets = [self._serve(kind) for kind in ("tcp", "udp", "abstract", "file")]
        self.before = self._folders()

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for found in self._sockets:
            found.close()
        tempfile.tempdir = self._outer
        for folder in (self.folder, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)

    def prelude(self) -> str:
        tcp, udp = (s.getsockname()[1] for s in self._sockets[:2])
        return _PRELUDE.format(bait=str(self.folder), tcp=tcp, udp=udp, victim=self.victim.pid, abstract=self.abstract)

    def harm(self) -> list[str]:
        """What an attack left or took."""
        found = []
        if self._look() != self.expected:
            found.append(f"bait changed: {self._look()}")
        if self.victim.poll() is not None:
            found.append("the host's process was killed")
        if self.visits:
            found.append(f"reached {self.visits}")
        left = left_behind()
        if left:
            time.sleep(0.2)
            left = left_behind()
        if left:
            found.append(f"processes left: {left}")
        if folders := self._folders() - self.before:
            found.append(f"folders left: {sorted(folders)}")
        return found

    def _look(self) -> dict[str, tuple]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.name != "socket":
                info = path.stat()
                found[path.name] = (info.st_mode, info.st_size, info.st_mtime_ns if path.is_file() else 0)
        return found

    def _folders(self) -> set[str]:
        return {p.name for p in self.temporary.glob("graft-box-*")}

    def _serve(self, kind: str) -> socket.socket:
        if kind in ("tcp", "udp"):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
            made.bind(("127.0.0.1", 0))
        else:
            made = socket.socket(socket.AF_UNIX)
            made.bind(self.abstract if kind == "abstract" else str(self.folder / "open" / "socket"))
            if kind == "file":
                (self.folder / "open" / "socket").chmod(0o777)
        if kind != "udp":
            made.listen()

        def wait() -> None:
            with contextlib.suppress(OSError):
                while True:
                    made.recvfrom(64) if kind == "udp" else made.accept()
                    self.visits.append(kind)

        threading.Thread(target=wait, daemon=True).start()
        return made


def left_behind() -> list[str]:
    """Processes whose command line carries the mark."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if MARK.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(name)
    return found


def attack(host: Host, backend: str, which: Attack) -> Outcome:
    """Run one program in one backend and judge it."""
    box = Sandbox(Policy(**LIMITS, level="weak"), backend)
    source = host.prelude() + which.source
    start = time.monotonic()
    result = box.run(
        [Step([interpreter()[0], "-I", "-S", "main.py", MARK], wall_s=which.wall_s)],
        {"main.py": source},
        which.collect,
    )
    seconds = time.monotonic() - start
    found = Outcome(which, result, seconds, host.harm())
    if b"ESCAPED" in result.last.stdout:
        found.problems.append(f"got out: {result.last.out[-200:]}")
    if result.status not in which.status:
        found.problems.append(
            f"status {result.status}, not {' or '.join(sorted(which.status))}: {result.last.err[-300:]} {result.why}"
        )
    if seconds > which.wall_s + 1:
        found.problems.append(f"took {seconds:.2f} s of {which.wall_s} s")
    if which.refused and not result.refused:
        found.problems.append(f"collected {sorted(result.artifacts)}")
    return found


def claimed(backend: str) -> list[Attack]:
    """The attacks that a backend promises to hold."""
    level = next(p.level for p in Sandbox.probe() if p.name == backend)
    return [a for a in ATTACKS if _ORDER[a.claimed] <= _ORDER[level]]


@contextlib.contextmanager
def bait() -> Iterator[Host]:
    """A host with bait, cleaned up afterwards."""
    host = Host()
    try:
        yield host
    finally:
        host.close()


if __name__ == "__main__":
    with bait() as here:
        for name in sys.argv[1:] or ["bwrap", "unshare", "landlock", "rlimit"]:
            for one in claimed(name):
                done = attack(here, name, one)
                mark = "HELD" if not done.problems else "FAIL"
                print(
                    f"{name:9} {mark} {done.seconds:5.2f} s {done.result.status:12} {one.name}  {done.problems or ''}"
                )
