"""Landlock (Salaün, kernel 5.13): a process gives up every path and port that it does not name.

Three system calls through ctypes. Only the standard library, because the runner imports this file by itself.
"""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_ALL_ABI1 = (1 << 13) - 1
_MAKE_DEVICES = (1 << 6) | (1 << 11)  # MAKE_CHAR, MAKE_BLOCK
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1, 2
SCOPES_SIGNALS = 6
"""From this version on, a process can signal only processes of its own domain."""


def abi() -> int:
    """The kernel's Landlock version; 0 where it has none or it is switched off."""
    found = ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    return max(0, found)


def restrict(read: list[str], write: list[str], files: list[str], version: int, net: bool = False) -> None:
    """Confine this process and its children for good.

    Args:
        read: folders to read and execute. write: folders to do anything in but make devices.
        files: single files or devices to read and write.
        version: what `abi()` said.

    Raises:
        OSError: the kernel refused, and nothing may run.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handled = _ALL_ABI1
    for least, bit in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        handled |= bit if version >= least else 0
    parts = [handled]
    if version >= 4:
        parts.append(0 if net else 3)
    if version >= SCOPES_SIGNALS:
        parts.append(_SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL)
    attributes = struct.pack(f"<{len(parts)}Q", *parts)
    rules = _checked(libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        wanted = [(path, EXECUTE | READ_FILE | READ_DIR) for path in read]
        wanted += [(path, handled & ~_MAKE_DEVICES & ~IOCTL_DEV) for path in write]
        wanted += [(path, handled & (READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV)) for path in files]
        for path, access in wanted:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if not os.path.isdir(path):
                access &= EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
            rule = struct.pack("<Qi", access, place)
            _checked(libc.syscall(_ADD, rules, 1, rule, 0))
            os.close(place)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(libc.syscall(_RESTRICT, rules, 0))
    finally:
        os.close(rules)


def install_filter(program: bytes) -> None:
    """Put a seccomp program (an array of `struct sock_filter`) on this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<H6xQ", len(program) // 8, ctypes.addressof(buffer))
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc.prctl(22, 2, header, 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
