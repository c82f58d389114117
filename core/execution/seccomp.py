"""A seccomp filter as classic BPF, assembled here so that its bytes can be tested.

The filter kills a process that uses another architecture's or the x32 table, answers a short list of system calls with
an error, looks at the arguments of a few more, and allows the rest: it closes the ways around the other layers
(mounts, tracing, namespaces, kernel attack surface) and is not an allow list of what a compiler needs. See Drewry,
seccomp(2), and `struct sock_filter` in linux/filter.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from core.errors import SandboxError

KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
AF_UNIX = 1
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX


@dataclass(frozen=True)
class Machine:
    """An architecture: the audit word that seccomp shows, and its system call numbers."""

    name: str
    audit: int
    x32: bool
    numbers: dict[str, int]


_X86 = Machine("x86_64", 0xC000003E, True, dict(
    socket=41, clone=56, kill=62, shmget=29, chmod=90, chown=92, lchown=94, ptrace=101, syslog=103, setpriority=141,
    sched_setparam=142, sched_setscheduler=144, modify_ldt=154, pivot_root=155, adjtimex=159, chroot=161, acct=163,
    settimeofday=164, mount=165, umount2=166, swapon=167, swapoff=168, reboot=169, sethostname=170, setdomainname=171,
    iopl=172, ioperm=173, init_module=175, delete_module=176, quotactl=179, nfsservctl=180, setxattr=188, lsetxattr=189,
    tkill=200, sched_setaffinity=203, lookup_dcookie=212, clock_settime=227, tgkill=234, utimes=235, kexec_load=246,
    add_key=248, request_key=249, keyctl=250, ioprio_set=251, migrate_pages=256, fchownat=260, fchmodat=268,
    unshare=272, move_pages=279, utimensat=280, rt_tgsigqueueinfo=297, perf_event_open=298,
    fanotify_init=300, prlimit64=302, name_to_handle_at=303, open_by_handle_at=304, clock_adjtime=305, setns=308,
    process_vm_readv=310, process_vm_writev=311, kcmp=312, finit_module=313, sched_setattr=314, memfd_create=319,
    kexec_file_load=320, bpf=321, userfaultfd=323, ioctl=16, uselib=134, ustat=136, sysfs=139, rt_sigqueueinfo=129,
    vhangup=153, removexattr=197, lremovexattr=198, utime=132, futimesat=261,
))  # fmt: skip
_ARM = Machine("aarch64", 0xC00000B7, False, dict(
    setxattr=5, lsetxattr=6, removexattr=14, lremovexattr=15, lookup_dcookie=18, ioctl=29, ioprio_set=30, umount2=39,
    mount=40, pivot_root=41, nfsservctl=42, chroot=51, fchmodat=53, fchownat=54, vhangup=58, quotactl=60,
    utimensat=88, acct=89, unshare=97, kexec_load=104, init_module=105, delete_module=106, clock_settime=112,
    syslog=116, ptrace=117, sched_setparam=118, sched_setscheduler=119, sched_setaffinity=122, kill=129, tkill=130,
    tgkill=131, rt_sigqueueinfo=138, setpriority=140, reboot=142, sethostname=161, setdomainname=162, settimeofday=170,
    adjtimex=171, shmget=194, socket=198, add_key=217, request_key=218, keyctl=219, clone=220, swapon=224, swapoff=225,
    migrate_pages=238, move_pages=239, rt_tgsigqueueinfo=240, perf_event_open=241, prlimit64=261, fanotify_init=262,
    name_to_handle_at=264, open_by_handle_at=265, clock_adjtime=266, setns=268, process_vm_readv=270,
    process_vm_writev=271, kcmp=272, finit_module=273, sched_setattr=274, memfd_create=279, bpf=280, userfaultfd=282,
    kexec_file_load=294,
))  # fmt: skip
_COMMON = dict(
    pidfd_send_signal=424, io_uring_setup=425, io_uring_enter=426, io_uring_register=427, open_tree=428,
    move_mount=429, fsopen=430, fsconfig=431, fsmount=432, fspick=433, clone3=435, pidfd_getfd=438,
    process_madvise=440, mount_setattr=442, quotactl_fd=443, process_mrelease=448, fchmodat2=452, setxattrat=463,
    removexattrat=466, open_tree_attr=467,
)  # fmt: skip
MACHINES = {m.name: Machine(m.name, m.audit, m.x32, {**m.numbers, **_COMMON}) for m in (_X86, _ARM)}

DENIED = (
    "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd "
    "mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr "
    "unshare setns bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
    "add_key request_key keyctl kexec_load kexec_file_load init_module finit_module delete_module "
    "open_by_handle_at name_to_handle_at swapon swapoff reboot sethostname setdomainname settimeofday clock_settime "
    "adjtimex clock_adjtime acct quotactl quotactl_fd nfsservctl syslog iopl ioperm modify_ldt lookup_dcookie "
    "fanotify_init migrate_pages move_pages memfd_create shmget uselib ustat sysfs vhangup"
).split()
"""Answered with EPERM. memfd_create and shmget would make memory that no process is seen to hold."""

SIGNALS = "kill tkill tgkill pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo".split()
METADATA = (
    "chmod fchmodat fchmodat2 chown lchown fchownat setxattr lsetxattr setxattrat removexattr lremovexattr "
    "removexattrat utime utimes futimesat utimensat"
).split()
"""Changes of a file by its path, which Landlock does not see."""

_OTHERS = (
    ("prlimit64", 0), ("sched_setaffinity", 0), ("sched_setscheduler", 0), ("sched_setattr", 0), ("sched_setparam", 0),
    ("setpriority", 1), ("ioprio_set", 1),
)  # fmt: skip
"""Calls that change a process: allowed only for the caller itself, which the argument 0 stands for."""


def machine(name: str | None = None) -> Machine:
    """The table of this or the named architecture. Raises `SandboxError` for one that has none."""
    name = name or platform.machine()
    if name not in MACHINES:
        raise SandboxError(f"no system call table for {name}", hint=f"known: {', '.join(MACHINES)}")
    return MACHINES[name]


def program(
    *,
    net: bool = False,
    unix_sockets: bool = True,
    signals: bool = True,
    metadata: bool = True,
    arch: str | None = None,
) -> bytes:
    """The filter as an array of `struct sock_filter` (8 bytes each).

    Args:
        net: leave socket(2) alone. unix_sockets: allow AF_UNIX when `net` is off.
        signals: allow sending signals. metadata: allow chmod and its like by path.
    """
    here = machine(arch)
    code = [
        _load(_ARCH), _jump(_JEQ, here.audit, 1, 0), _return(KILL), _load(_NR),
        *([_jump(_JGE, 0x40000000, 0, 1), _return(KILL)] if here.x32 else []),
    ]  # fmt: skip
    denied = [*DENIED, *(() if signals else SIGNALS), *(() if metadata else METADATA)]
    if not net and not unix_sockets:
        denied.append("socket")
    for name in denied:
        if name in here.numbers:
            code += [_jump(_JEQ, here.numbers[name], 0, 1), _return(ERRNO | errno.EPERM)]
    # The C library falls back to clone(2), whose flags are in a register where a filter can see them.
    code += [_jump(_JEQ, here.numbers["clone3"], 0, 1), _return(ERRNO | errno.ENOSYS)]
    code += _when(here, "clone", 0, [_jump(_JSET, NEW_NAMESPACES, 0, 1), _return(ERRNO | errno.EPERM)])
    if not net and unix_sockets:
        code += _when(here, "socket", 0, [_jump(_JEQ, AF_UNIX, 1, 0), _return(ERRNO | errno.EACCES)])
    for name, argument in _OTHERS:
        code += _when(here, name, argument, [_jump(_JEQ, 0, 1, 0), _return(ERRNO | errno.EPERM)])
    first, second = _TERMINAL_INJECTION
    code += _when(here, "ioctl", 1, [_jump(_JEQ, first, 1, 0), _jump(_JEQ, second, 0, 1), _return(ERRNO | errno.EPERM)])
    return b"".join([*code, _return(ALLOW)])


def _when(here: Machine, name: str, argument: int, body: list[bytes]) -> list[bytes]:
    """`body` on the low word of an argument of the call `name`; allowed where the body does not return."""
    block = [_load(_ARGS + 8 * argument), *body, _return(ALLOW)]
    return [_jump(_JEQ, here.numbers[name], 0, len(block)), *block]


def _load(offset: int) -> bytes:
    return struct.pack("<HBBI", _LD, 0, 0, offset)


def _jump(code: int, value: int, yes: int, no: int) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _return(action: int) -> bytes:
    return struct.pack("<HBBI", _RET, 0, 0, action)
