"""Kernels on a CPU: blocks of fibers in the sandbox, with every access checked, for shapes that are small enough.

A kernel is compiled by the host compiler against `emulation/simt.h`. The emulator finds what a comparison of outputs
may miss: accesses outside a buffer, reads of what nothing wrote, races between threads without a barrier, barriers and
warp operations that not all threads reach. What it cannot run is "unsupported", never a pass. It also counts memory
transactions, from which `model.py` estimates a time.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.cuda.plan import BYTES, Launch, Resolved, Signature
from apps.cuda.policy import unsupported
from apps.cuda.source import Kernel, for_emulator
from apps.cuda.verdict import Diagnostic
from core.execution import ExecCache, Policy, Sandbox, Step, tool

_FOLDER = Path(__file__).parent / "emulation"
_HEADERS = ("simt.h", "simt_half.h")
_FLAGS = ["-std=c++17", "-g1", "-fno-pie", "-w", "-fno-strict-aliasing"]
_CHECKED = [
    "-O1", "-fsanitize=thread", "-fsanitize=bounds,alignment", "-fsanitize-undefined-trap-on-error", "--param",
    "tsan-instrument-func-entry-exit=0",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of a plan: its numbers, the bytes of the inputs in the signature's order, and the order of threads."""

    resolved: Resolved
    signature: Signature
    inputs: Sequence[bytes]
    reverse: bool = False


@dataclass(frozen=True)
class Emulated:
    """What a run of jobs gave.

    Args:
        status: ok, fault, timeout, unsupported or error. outputs: of each finished job, name → bytes.
        unwritten: of each finished job, name → elements that no thread wrote.
        detail, diagnostics: about a fault. counts: of the first job.
    """

    status: str
    outputs: tuple[Mapping[str, bytes], ...] = ()
    unwritten: tuple[Mapping[str, int], ...] = ()
    detail: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    cached: bool = False
    seconds: float = 0.0


class Emulator:
    """Runs jobs. Safe to share between threads.

    Args:
        level: least isolation. seconds: of all jobs together. cache: known results.

    Raises:
        ToolMissing: no g++. SandboxError: no isolation as asked.
    """

    def __init__(self, level: str = "strict", seconds: float = 30.0, cache: ExecCache | None = None) -> None:
        self.version, self.seconds, self.cache = tool("g++").version, seconds, cache
        policy = Policy(
            wall_s=seconds, cpu_s=seconds + 30, mem_mb=2048, address_space=False, tmp_mb=384, fsize_mb=128,
            max_procs=32,
            max_output_kb=1024, max_artifact_mb=128, level=level,  # type: ignore[arg-type]
        )  # fmt: skip
        self.box = Sandbox.best(policy)
        self._runtime: bytes | None = None
        self._lock = threading.Lock()

    def run(self, code: str, kernels: Mapping[str, Kernel], jobs: Sequence[Job]) -> Emulated:
        """The jobs in order, up to the first that goes wrong."""
        if reason := unsupported(code):
            return Emulated("unsupported", detail=f"{reason} cannot be run here")
        names = [name for name, kernel in kernels.items() if not kernel.template]
        files: dict[str, str | bytes] = {
            "kernel.cpp": unit(code, [kernels[n] for n in names]),
            "simt.o": self.runtime(),
        }
        files |= {name: (_FOLDER / name).read_text(encoding="utf-8") for name in _HEADERS}
        for number, job in enumerate(jobs):
            files[f"job-{number}.txt"] = describe(job, names)
            files[f"job-{number}.bin"] = b"".join(job.inputs)
        steps = [
            Step(["g++", *_FLAGS, *_CHECKED, "-c", "kernel.cpp", "-o", "kernel.o"], wall_s=60),
            Step(["g++", "-no-pie", "kernel.o", "simt.o", "-o", "emulate"], wall_s=30, only_if=0),
            Step(["./emulate", str(len(jobs))], wall_s=self.seconds, only_if=0),
            Step(["sh", "-c", "test -f pc && addr2line -i -e emulate $(cat pc) || true"], wall_s=10),
        ]
        collect = [f"out-{number}.bin" for number in range(len(jobs))]
        done = self.box.run(steps, files, collect) if self.cache is None else self.cache.run(
            self.box, steps, files, collect, extra=self.version
        )  # fmt: skip
        return self._read(done, jobs)

    def _read(self, done: Any, jobs: Sequence[Job]) -> Emulated:
        common = {"cached": done.cached, "seconds": 0.0 if done.cached else done.wall_s}
        if len(done.steps) < 3:
            return Emulated("error", detail=done.why or done.status, **common)
        built, linked, ran = done.steps[:3]
        if built.status != "ok" or linked.skipped or linked.status != "ok":
            words = built.err + linked.err
            found = re.search(r"kernel\.cu:(\d+):(?:\d+:)? (?:fatal )?error: (.*)", words)
            line, said = (int(found[1]), found[2]) if found else (0, next(iter(words.splitlines()), built.status))
            return Emulated("unsupported", detail=f"line {line}: {said}"[:300], **common)
        outputs, unwritten = [], []
        for number, job in enumerate(jobs):
            if f"done {number}" not in ran.out.splitlines() or f"out-{number}.bin" not in done.artifacts:
                break
            outputs.append(_outputs(done.artifacts[f"out-{number}.bin"], job.signature))
            unwritten.append(_unwritten(ran.out, number, job.signature))
        found = re.search(r"^counts (.*)$", ran.out, re.M)
        words = found[1].split() if found else []
        counts = {name: int(value) for name, value in zip(words[::2], words[1::2])}
        common |= {"outputs": tuple(outputs), "unwritten": tuple(unwritten), "counts": counts}
        if ran.status == "ok":
            return Emulated("ok", **common)
        if ran.status == "timeout":
            return Emulated("timeout", detail=f"not done within {self.seconds:g} s", **common)
        fault = re.search(r"^fault (\w+) (\S+) (\S+) (\S+) (\S+) (.*)$", ran.out, re.M)
        if fault is None:
            return Emulated("error" if ran.rc == 4 else "fault", detail=ran.status, **common)
        kind, kernel, block, thread, _, words = fault.groups()
        detail = f"thread {thread} of block {block} of {kernel} {words}" if thread != "-" else words
        lines = [int(n) for n in re.findall(r"kernel\.(?:cu|cpp):(\d+)", done.steps[-1].out)]
        mark = Diagnostic(lines[0] if lines else 0, detail)
        return Emulated("fault", detail=f"{kind}: {detail}", diagnostics=(mark,),
                        **common)  # fmt: skip

    def runtime(self) -> bytes:
        """The emulator's own part, compiled once."""
        with self._lock:
            if self._runtime is None:
                files = {"simt.cpp": (_FOLDER / "simt.cpp").read_text(encoding="utf-8")}
                steps = [Step(["g++", *_FLAGS, "-O2", "-c", "simt.cpp", "-o", "simt.o"], wall_s=120)]
                run = self.cache.run if self.cache is not None else None
                extra = {"extra": self.version} if run else {}
                made = (
                    run(self.box, steps, files, ["simt.o"], **extra) if run else self.box.run(steps, files, ["simt.o"])
                )
                if not made.ok:
                    from core.errors import SandboxError

                    raise SandboxError(f"the emulator does not compile: {made.last.err[:300] or made.why}")
                self._runtime = made.artifacts["simt.o"]
            return self._runtime


def unit(code: str, kernels: Sequence[Kernel]) -> str:
    """The translation unit of a candidate: emulator header, its code under its own line numbers, a table of kernels."""
    calls, rows = [], []
    for number, kernel in enumerate(kernels):
        given = ", ".join(f"get<{p.text}>(a[{i}])" for i, p in enumerate(kernel.params))
        calls.append(f"static void call_{number}(const Value* a) {{ ::{kernel.name}({given}); }}")
        rows.append(f'{{"{kernel.name}", call_{number}}}')
    return (
        f'#include "simt.h"\n#line 1 "kernel.cu"\n{for_emulator(code)}\n#line 1 "calls.inc"\nnamespace simt {{\n'
        + "\n".join(calls)
        + f"\nextern const Entry kernels[] = {{{', '.join(rows)}}};\n"
        + f"extern const unsigned kernel_count = {len(rows)};\n}}\n"
    )


def describe(job: Job, kernels: Sequence[str]) -> str:
    """A job as the emulator reads it."""
    resolved, signature = job.resolved, job.signature
    places: dict[str, int] = {}
    lines = [f"{int(job.reverse)} {len(signature.inputs) + len(signature.outputs) + len(resolved.scratch)}"]
    for kind, specs in enumerate((signature.inputs, signature.outputs, resolved.scratch)):
        for name, spec in specs.items():
            places[name] = len(places)
            lines.append(f"{kind} {spec.bytes} {BYTES[spec.dtype]} {int(name in resolved.zero)}")
    lines.append(str(len(resolved.launches)))
    for launch in resolved.launches:
        numbers = [kernels.index(launch.kernel), *launch.grid, *launch.block, launch.shared, len(launch.args)]
        lines.append(" ".join(map(str, numbers)))
        lines.append(" ".join(_value(kind, value, places) for kind, value in launch.args))
    return "\n".join(lines) + "\n"


def _value(kind: str, value: Any, places: Mapping[str, int]) -> str:
    if kind == "tensor":
        return f"t {places[value]}"
    return f"v {number_bits(kind, value)}"


def number_bits(kind: str, value: Any) -> int:
    """The bits of a plain argument, as an unsigned integer of 8 bytes."""
    if kind in ("float", "double"):
        packed = struct.pack("<f" if kind == "float" else "<d", value)
        return int.from_bytes(packed, "little")
    return int(value) % 2**64


def threads_of(launch: Launch) -> int:
    """Threads of a launch."""
    total = 1
    for number in (*launch.grid, *launch.block):
        total *= number
    return total


def _outputs(data: bytes, signature: Signature) -> dict[str, bytes]:
    found, at = {}, 0
    for name, spec in signature.outputs.items():
        found[name] = data[at : at + spec.bytes]
        at += spec.bytes
    return found


def _unwritten(said: str, number: int, signature: Signature) -> dict[str, int]:
    found = {}
    for place, name in enumerate(signature.outputs, len(signature.inputs)):
        match = re.search(rf"^unwritten {number} {place} (\d+)$", said, re.M)
        found[name] = int(match[1]) if match else 0
    return found
