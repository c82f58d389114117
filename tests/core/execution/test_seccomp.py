"""The filter's bytes: interpreted here as the kernel would, and its numbers checked against the kernel's headers."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from core.errors import SandboxError
from core.execution import seccomp
from core.execution.seccomp import ALLOW, ERRNO, KILL, MACHINES


def verdict(program: bytes, nr: int, audit: int, *args: int) -> int:
    """Classic BPF on `struct seccomp_data`, for the few instructions that the filter uses."""
    data = struct.pack("<iIQ6Q", nr, audit, 0, *(a & (2**64 - 1) for a in [*args, *[0] * (6 - len(args))]))
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == 0x06:
            return k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += yes if holds else no


@pytest.fixture(params=sorted(MACHINES))
def machine(request):
    return MACHINES[request.param]


def test_ordinary_calls_pass_and_dangerous_ones_fail(machine):
    program = seccomp.program(arch=machine.name)
    denied = {machine.numbers[n] for n in seccomp.DENIED if n in machine.numbers}
    special = {machine.numbers[n] for n in ("clone3", "socket", "ioctl", "clone")}
    others = {machine.numbers[n] for n, _ in seccomp._OTHERS}
    for nr in range(600):
        found = verdict(program, nr, machine.audit)
        if nr in denied:
            assert found == ERRNO | 1, nr
        elif nr not in special | others:
            assert found == ALLOW, nr


def test_another_architecture_and_x32_are_killed(machine):
    program = seccomp.program(arch=machine.name)
    assert verdict(program, 0, 0x40000003) == KILL
    if machine.x32:
        assert verdict(program, 0x40000000, machine.audit) == KILL
        assert verdict(program, -1, machine.audit) == KILL


def test_arguments_decide(machine):
    n, audit = machine.numbers, machine.audit
    program = seccomp.program(arch=machine.name)
    assert verdict(program, n["socket"], audit, 1) == ALLOW
    assert verdict(program, n["socket"], audit, 2) == ERRNO | 13
    assert verdict(program, n["socket"], audit, 2 | 1 << 32) == ERRNO | 13
    assert verdict(seccomp.program(arch=machine.name, unix_sockets=False), n["socket"], audit, 1) == ERRNO | 1
    assert verdict(seccomp.program(arch=machine.name, net=True), n["socket"], audit, 2) == ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, n["clone"], audit, flag | 17) == ERRNO | 1
    assert verdict(program, n["clone"], audit, 0x003D0F00) == ALLOW  # what a thread is made with
    assert verdict(program, n["clone3"], audit) == ERRNO | 38
    assert verdict(program, n["prlimit64"], audit, 0) == ALLOW
    assert verdict(program, n["prlimit64"], audit, 1) == ERRNO | 1
    assert verdict(program, n["ioctl"], audit, 0, 0x5401) == ALLOW
    for request in (0x5412, 0x541C, 0x5412 | 1 << 32):
        assert verdict(program, n["ioctl"], audit, 0, request) == ERRNO | 1


def test_signals_and_metadata_close_when_asked(machine):
    program = seccomp.program(arch=machine.name, signals=False, metadata=False)
    for name in (*seccomp.SIGNALS, *seccomp.METADATA):
        if name in machine.numbers:
            assert verdict(program, machine.numbers[name], machine.audit) == ERRNO | 1
            assert verdict(seccomp.program(arch=machine.name), machine.numbers[name], machine.audit) == ALLOW


@pytest.mark.parametrize(
    "name, header",
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_the_kernels(name, header):
    if not Path(header).is_file():
        pytest.skip(f"{header} is not installed (Debian package: linux-libc-dev)")
    known = dict(re.findall(r"#define __NR3?[_2-6]*?_(\w+)\s+(\d+)", Path(header).read_text()))
    assert len(known) > 250
    for call, number in MACHINES[name].numbers.items():
        if call in known:
            assert int(known[call]) == number, call


def test_an_unknown_architecture_is_an_error():
    with pytest.raises(SandboxError, match="vax"):
        seccomp.program(arch="vax")
