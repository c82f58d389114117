"""What a run may use, what it is asked to do, and what came of it. Plain data; nothing here starts a process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from core.errors import ConfigError

Level = Literal["strict", "medium", "weak"]
LEVELS: tuple[Level, ...] = ("weak", "medium", "strict")

Status = Literal[
    "ok", "nonzero", "timeout", "memory", "output_limit", "disk_limit", "killed", "tool_missing", "sandbox_error"
]
"""nonzero: an exit code other than 0. killed: ended by a signal, its own or one of another process of the run."""


@dataclass(frozen=True)
class Policy:
    """Limits and isolation of one run.

    Args:
        wall_s: seconds for each step that does not give its own. cpu_s: CPU seconds of each process.
        mem_mb: memory of all processes together, in MiB, watched every few milliseconds.
        address_space: also cap each process's address space a little above `mem_mb`. Off for CUDA and for sanitizers,
            which reserve far more than they use.
        tmp_mb: size of the run folder and of /tmp, each. fsize_mb: size of one file.
        max_procs: processes and threads at the same time. max_fds: open files of a process.
        max_inodes: files in the run folder and in /tmp, each.
        max_output_kb: standard output and error together, in KiB, for each step.
        max_artifact_mb: size of what is collected, all together.
        net: leave the network reachable. ro: paths that are visible, read-only, besides /usr. env: added variables.
        devices: device nodes that are visible, e.g. ("/dev/nvidia0",).
        level: the least isolation accepted; a machine that cannot give it is an error, never a silent downgrade.
    """

    wall_s: float = 30.0
    cpu_s: float = 30.0
    mem_mb: int = 1024
    address_space: bool = True
    tmp_mb: int = 64
    fsize_mb: int = 32
    max_procs: int = 32
    max_fds: int = 256
    max_inodes: int = 4096
    max_output_kb: int = 256
    max_artifact_mb: int = 32
    net: bool = False
    ro: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    level: Level = "strict"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"unknown isolation level '{self.level}'", hint=f"known: {', '.join(LEVELS)}")
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{name} is {value}", where="Policy", hint="give a positive limit")
        for path in (*self.ro, *self.devices):
            if not PurePosixPath(path).is_absolute():
                raise ConfigError(f"'{path}' is not an absolute path", where="Policy.ro")
        if any("\0" in part or "=" in name for name, value in self.env.items() for part in (name, value)):
            raise ConfigError("a variable's name holds '=', or its name or value a zero byte", where="Policy.env")

    def outcome(self) -> dict[str, Any]:
        """The fields that can change what a run prints, for a cache key. Wall time is not among them."""
        return {k: v for k, v in asdict(self).items() if k not in ("wall_s", "level")}


@dataclass(frozen=True)
class Step:
    """One command of a run.

    Args:
        argv: the command; a bare name is looked up in PATH inside the sandbox.
        wall_s: seconds; None takes the policy's. stdin: given to the command.
        only_if: run only when the step before it ended with this exit code; None always runs.
    """

    argv: Sequence[str]
    wall_s: float | None = None
    stdin: bytes = b""
    only_if: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.argv, str) or not self.argv or not all(isinstance(a, str) for a in self.argv):
            raise ConfigError("argv is a list of words", where="Step.argv", hint='e.g. ["iverilog", "-V"]')
        if any("\0" in word for word in self.argv):
            raise ConfigError("a word of the command holds a zero byte", where="Step.argv")


@dataclass(frozen=True)
class StepResult:
    """How a step ended.

    Args:
        rc: exit code; None when a signal ended it. signal: its number, or None.
        wall_s, cpu_s: seconds; cpu_s of the command and of the children it waited for. max_rss_mb: MiB.
        stdout, stderr: what it wrote, cut at the policy's limit (`truncated`).
        skipped: it did not run because of `only_if`.
    """

    status: Status
    rc: int | None = None
    signal: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False
    skipped: bool = False

    @property
    def out(self) -> str:
        return self.stdout.decode("utf-8", "replace")

    @property
    def err(self) -> str:
        return self.stderr.decode("utf-8", "replace")


@dataclass(frozen=True)
class ExecResult:
    """How a run ended.

    Args:
        status: of the first step that did not end with "ok", else "ok".
        steps: in the order given; `steps[i].skipped` tells those that did not run.
        artifacts: name → content of the collected files. refused: name → why a file was not collected.
        level: isolation of the run. wall_s: of the whole launch. cached: answered from a cache.
    """

    status: Status
    steps: tuple[StepResult, ...] = ()
    artifacts: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    level: Level = "strict"
    wall_s: float = 0.0
    cached: bool = False
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def last(self) -> StepResult:
        """The last step that ran."""
        ran = [step for step in self.steps if not step.skipped]
        return ran[-1] if ran else StepResult("sandbox_error", stderr=self.why.encode())


def half_character(text: str) -> str | None:
    """The first lone surrogate: JSON can spell one, but it is no character, and no file can hold it. None without."""
    found = re.search("[\ud800-\udfff]", text)
    return None if found is None else found[0]


def check_name(name: str) -> str:
    """A relative path inside the run folder, or a `ConfigError`."""
    parts = PurePosixPath(name).parts
    if not name or "\0" in name or "\n" in name or PurePosixPath(name).is_absolute() or ".." in parts:
        raise ConfigError(f"'{name}' is not a path inside the run folder", where="files")
    return name
