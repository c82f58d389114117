"""The second way into a sandbox, without bubblewrap: mounts of our own, made as the first process of new namespaces.

`unshare --user --map-root-user --mount --pid --net --ipc --uts --fork --kill-child python -I -S namespace RESULT_FD
SPEC_FD` starts this file, which builds a small root file system on a tmpfs (read-only /usr, device nodes, /proc, a run
folder and /tmp of bounded size), moves into it, gives up every capability and becomes the runner. Only the standard
library.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import struct
import sys

_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_libc = ctypes.CDLL(None, use_errno=True)


def enter(spec: dict) -> None:
    """Build the root that `spec` describes and move into it."""
    root = spec["root"]
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("root", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=512,mode=755")
    for link, target in spec["links"].items():
        os.symlink(target, root + link)
    for place in ("/tmp", spec["box"]):
        os.makedirs(root + place, exist_ok=True)
        options = f"size={spec['disk_bytes']},nr_inodes={spec['inodes'] + 64},mode=1777"
        _mount("box", root + place, "tmpfs", _NOSUID | _NODEV, options)
    for path in spec["read"]:
        _bind(path, root + path, readonly=True)
    for path in spec["devices"]:
        _bind(path, root + path, readonly=False)
    os.makedirs(root + "/proc")
    _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV)
    old = root + "/old"
    os.mkdir(old)
    number = _PIVOT_ROOT[os.uname().machine]
    _checked(_libc.syscall(number, root.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    _checked(_libc.umount2(b"/old", 2), "umount2 /old")
    os.rmdir("/old")
    _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    _checked(_libc.sethostname(b"box", 3), "sethostname")


def give_up_capabilities() -> None:
    """No capability now, none after exec, none through set-user-id files."""
    for capability in range(64):
        _libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    _checked(_libc.prctl(28, 0x2F, 0, 0, 0), "securebits")  # NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, locked
    _checked(_libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    header, data = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    _checked(_libc.capset(header, data), "capset")


def _bind(source: str, target: str, readonly: bool) -> None:
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a"):
            pass
    _mount(source, target, None, _BIND | _REC)
    if readonly:
        # A mount keeps the flags its source is locked to; asking for them again is allowed, dropping them is not.
        for flags in (_NOSUID | _NODEV, _NOSUID, _NODEV, 0):
            if _mount(None, target, None, _REMOUNT | _BIND | _RDONLY | flags, check=flags == 0):
                return


def _mount(source, target: str, kind, flags: int, options: str = "", check: bool = True) -> bool:
    encoded = [value.encode() if value is not None else None for value in (source, target, kind)]
    done = _libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() or None)
    if check:
        _checked(done, f"mount {target}")
    return done == 0


def _checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "rb") as handle:
        wanted = marshal.load(handle)
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    import landlock
    import runner

    enter(wanted)
    give_up_capabilities()
    landlock.install_filter(wanted["seccomp"])
    runner.main(int(sys.argv[1]))
