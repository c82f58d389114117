"""Whether a bug is one: original and faulty function run in the sandbox under sanitizers, on the same inputs.

The caller gives a driver, a `main` that calls the function and prints what it computed. Address and undefined-behaviour
sanitizers see accesses outside arrays and wrong shifts; uninitialised values and endless loops show by themselves; the
rest shows as another output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.execution import ExecResult, Policy, Sandbox, Step, tool

STUBS = """#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
template <int W> using ap_uint = uint64_t;
template <int W> using ap_int = int64_t;
"""
"""Stand-ins for the vendor's headers: arbitrary-width integers as 64-bit ones."""

_SIGNS = (
    ("OOB", re.compile(r"buffer-overflow|index .* out of bounds|stack-use|heap-use")),
    ("SHFT", re.compile(r"shift exponent|left shift of")),
    ("INIT", re.compile(r"null pointer|uninitialized")),
    ("USE", re.compile(r"signed integer overflow|outside the range of representable")),
)


@dataclass(frozen=True)
class Observed:
    """What a comparison showed.

    Args:
        kind: the type that the run points at, "differs" for another output, "" when nothing shows, "unjudged" when
            the original itself does not compile or run. report: the first lines of the evidence.
    """

    kind: str
    report: str = ""


def observe(original: str, faulty: str, driver: str, *, seconds: float = 5, level: str = "strict") -> Observed:
    """Run both versions.

    Args:
        driver: C++ with a `main` that calls the function and prints its results.

    Raises:
        ToolMissing: g++ is not installed.
    """
    tool("g++")
    policy = Policy(wall_s=seconds, cpu_s=60, mem_mb=1024, address_space=False, tmp_mb=128, fsize_mb=64, level=level)  # type: ignore[arg-type]
    box = Sandbox.best(policy)
    first = _run(box, original, driver)
    if not first.ok:
        return Observed("unjudged", (first.last.err or str(first.status))[:400])
    second = _run(box, faulty, driver)
    if second.status == "timeout" and len(second.steps) == 2 and not second.steps[1].skipped:
        return Observed("INF", f"no end within {seconds} s")
    text = "\n".join(step.err for step in second.steps)
    for kind, sign in _SIGNS:
        if match := sign.search(text):
            line = next(line for line in text.splitlines() if match[0] in line)
            return Observed(kind, line.strip()[:300])
    if second.steps[0].rc != 0:
        return Observed("unjudged", text[:400])
    if not second.ok:
        return Observed("differs", f"ended with {second.status}")
    if second.last.stdout != first.last.stdout:
        return Observed("differs", f"expected {first.last.out[:120]!r}, got {second.last.out[:120]!r}")
    return Observed("")


def _run(box: Sandbox, code: str, driver: str) -> ExecResult:
    text = f"{STUBS}\n{code}\n{driver}\n"
    flags = ["-std=c++17", "-O1", "-g", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    steps = [Step(["g++", *flags, "-o", "run", "f.cpp"], wall_s=60), Step(["./run"], only_if=0)]
    box = box.with_policy(env={"ASAN_OPTIONS": "detect_leaks=0"})
    return box.run(steps, {"f.cpp": text})
