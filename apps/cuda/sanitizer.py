"""compute-sanitizer on small cases: accesses beyond an allocation, and races in shared memory, on the GPU itself.

    Sanitizer.find().run(cubin, jobs, racy=True).status         # clean, fault or failed

A right output proves neither: a read past an input may find what fits, and a race is lost only now and then. The
emulator looks for both too, but cannot run tensor cores, inline PTX or cooperative groups. The tool is part of the CUDA
toolkit, and a wheel by itself. When it cannot do its work that is "failed", and never a verdict on the kernel.

Memcheck knows what is allocated, and no more: an index past a buffer must not find another one. So the tool pads every
allocation, and the program under it keeps them apart besides.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from apps.cuda.compiling import wheels
from apps.cuda.device import gpu_policy, job_row
from apps.cuda.emulator import Job
from apps.cuda.inside.sanitized import APART
from apps.cuda.verdict import Diagnostic
from core.execution import ExecResult, Sandbox, Step, StepResult, tool
from core.execution.backends import interpreter

PACKAGE = "nvidia-cuda-sanitizer-api"


@dataclass(frozen=True)
class Sanitized:
    """What the tools found: "clean", a "fault" with its lines, or "failed" with why nothing could be said.

    `said` are their own words, and those of the program under them.
    """

    status: Literal["clean", "fault", "failed"]
    detail: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()
    said: str = ""


class Sanitizer:
    """Runs the tool found at `path`. Use `find`.

    Args:
        path: the program. level: least isolation. seconds: of one tool.

    Raises:
        SandboxError: no isolation as asked.
    """

    def __init__(self, path: str, level: str = "strict", seconds: float = 60.0) -> None:
        self.path, self.seconds = os.path.realpath(path), seconds
        home = str(Path(self.path).parent.parent)
        seen = [*([] if home.startswith("/usr/") else [home]), *interpreter()[1]]
        self.box = Sandbox.best(gpu_policy(level, seconds, seen))
        self.failure = ""
        """Why it failed last; empty while it does its work."""

    @classmethod
    def find(cls, level: str = "strict", seconds: float = 60.0) -> Self | None:
        """The tool of CUDA_HOME, of PATH, of /usr/local/cuda or of its wheel; None where there is none."""
        homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", *wheels()]
        places = [f"{home}/bin/compute-sanitizer" for home in homes if home]
        on_path = shutil.which("compute-sanitizer")
        places.insert(1 if homes[0] else 0, on_path or "")
        found = next((place for place in places if os.access(place, os.X_OK)), None)
        return None if found is None else cls(found, level, seconds)

    @property
    def described(self) -> str:
        """Its version, and why it failed when it was last asked."""
        return tool(self.path).version + (f"; it failed: {self.failure}" if self.failure else "")

    def run(self, cubin: bytes, jobs: Sequence[Job], racy: bool) -> Sanitized:
        """Memcheck, and racecheck for a kernel with shared memory (`racy`); a cubin with line tables gives lines."""
        files: dict[str, str | bytes] = {
            "sanitized.py": (Path(__file__).parent / "inside" / "sanitized.py").read_text(encoding="utf-8"),
            "jobs.json": json.dumps([job_row(job) for job in jobs]),
            "kernel.cubin": cubin,
        }
        tools = ["memcheck", *(["racecheck"] if racy else [])]
        candidate = [interpreter()[0], "-I", "-S", "sanitized.py", "jobs.json", "kernel.cubin"]
        done = self.box.run([Step([self.path, "--tool", name, *_OPTIONS[name], *candidate]) for name in tools], files)
        found = self._read(tools, done)
        self.failure = found.detail if found.status == "failed" else ""
        words = [f"{name}:\n{step.out}\n{step.err}".strip()[:4000] for name, step in zip(tools, done.steps)]
        return replace(found, said="\n".join(words))

    def _read(self, tools: Sequence[str], done: ExecResult) -> Sanitized:
        """A fault stands, whatever became of the other tool; else a failure does."""
        found = [self._one(name, step) for name, step in zip(tools, done.steps)]
        if len(found) < len(tools):
            found.append(Sanitized("failed", done.why or done.status))
        return min(found, key=lambda one: ("fault", "failed", "clean").index(one.status))

    def _one(self, name: str, step: StepResult) -> Sanitized:
        if step.status == "timeout":
            return Sanitized("failed", f"{name} is not done within {self.seconds:g} s")
        found = report(name, step.out)
        if found is None or (found.status == "clean" and "done" not in step.out.split()):
            said = next(iter(step.err.splitlines()[-1:] or _complaints(step.out)), step.status)
            return Sanitized("failed", f"{name}: {said}"[:300])
        return found


_OPTIONS = {
    "memcheck": ("--show-backtrace", "no", "--report-api-errors", "no", "--padding", str(APART)),
    "racecheck": ("--show-backtrace", "no"),
}
_SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: ([\d,]+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: .*\(([\d,]+) error"),
}
_FINDING = {
    "memcheck": re.compile(r"by thread \("),
    "racecheck": re.compile(r"Error: .*(?:Race|hazard)", re.IGNORECASE),
}
_CHANGES = (
    r"\bError: ", r" ?\[[\d,]+ hazards?\]", r"\+0x[0-9a-f]+", r"(?: at)? 0x[0-9a-f]+", r"\((?=[^)]*[a-z])[^)]*\)|\(\)",
)  # fmt: skip
"""What a finding says that changes from run to run, and the types of a kernel's parameters."""


def report(name: str, said: str) -> Sanitized | None:
    """What a tool's output comes to; None where it has no summary. Addresses are left out: they change."""
    summary = _SUMMARY[name].search(said)
    if summary is None:
        return None
    if int(summary[1].replace(",", "")) == 0:
        return Sanitized("clean")
    blocks = [block for block in _blocks(said) if any(map(_FINDING[name].match, block))]
    marks = tuple(dict.fromkeys(_told(name, block) for block in blocks))[:5]
    if not marks:
        return Sanitized("failed", f"{name}: {next(iter(_complaints(said)), summary[0])}"[:300])
    return Sanitized("fault", marks[0].message, marks)


def _lines(said: str) -> list[str]:
    """The tool's own lines, without their mark."""
    return [line[10:].rstrip() for line in said.splitlines() if line.startswith("=========")]


def _complaints(said: str) -> list[str]:
    return [line.strip() for line in _lines(said) if re.match(r"(?:Internal Sanitizer )?Error\b", line)]


def _blocks(said: str) -> list[list[str]]:
    """Findings: a line, and those below it that are indented."""
    blocks: list[list[str]] = []
    for line in _lines(said):
        if line.startswith("    "):
            if blocks:
                blocks[-1].append(line.strip())
        elif line:
            blocks.append([line])
    return blocks


def _told(name: str, block: Sequence[str]) -> Diagnostic:
    kept = [line for line in block if not re.match(r"(?:Saved host backtrace|Host Frame|Device Frame)", line)]
    words = " ".join(kept)
    place = re.search(r"kernel\.cu:(\d+)", words)
    for pattern in _CHANGES:
        words = re.sub(pattern, "", words)
    words = re.sub(r" in \S*kernel\.cu:(\d+)(?::\w+)?", r", line \1", words)
    return Diagnostic(int(place[1]) if place else 0, f"{name}: {' '.join(words.split())}"[:300])
