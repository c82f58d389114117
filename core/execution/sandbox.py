"""Run commands that nobody trusts, and say exactly how strictly they were held.

    box = Sandbox.best(Policy(wall_s=5))
    done = box.run([Step(["python3", "main.py"])], files={"main.py": code})
    done.status, done.last.out, done.level

`Sandbox.best` takes the strictest backend that works on this machine and refuses to go below `policy.level`. The steps
of one run share a folder and one launch. Nothing of a run outlives it: no process, no file.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from core.errors import SandboxError
from core.execution import backends
from core.execution.backends import BACKENDS
from core.execution.policy import ExecResult, Level, Policy, Step, check_name
from core.execution.running import Running, parse_result

GRACE = 0.9
"""Seconds beyond the limits of the steps before the whole launch is killed from outside."""


@dataclass(frozen=True)
class Probe:
    """Whether a backend works here, and why not."""

    name: str
    level: Level
    available: bool
    reason: str


class Sandbox:
    """A backend with a policy. Safe to share between threads.

    Args:
        policy: limits of every run. backend: its name; use `best` to have it chosen.

    Raises:
        SandboxError: the backend isolates less than the policy accepts, or does not work here.
    """

    def __init__(self, policy: Policy | None = None, backend: str = "bwrap") -> None:
        self.policy, self._backend = policy or Policy(), backends.backend(backend)
        if self._backend not in backends.levels_at_least(self.policy.level):
            raise SandboxError(
                f"{backend} isolates only at level '{self._backend.level}', and '{self.policy.level}' was asked for",
                hint=f'say level="{self._backend.level}" if you trust the code enough',
            )
        probe = probe_backend(backend)
        if not probe.available:
            raise SandboxError(f"the sandbox backend {backend} does not work here: {probe.reason}")

    @classmethod
    def best(cls, policy: Policy | None = None) -> Self:
        """The strictest backend that works here.

        Raises:
            SandboxError: none works at the level that the policy asks for; the message lists what each one lacks.
        """
        policy = policy or Policy()
        wanted = backends.levels_at_least(policy.level)
        for candidate in wanted:
            if probe_backend(candidate.name).available and not (policy.net and candidate.name == "unshare"):
                return cls(policy, candidate.name)
        reasons = "; ".join(f"{b.name}: {probe_backend(b.name).reason}" for b in wanted)
        raise SandboxError(
            f"no sandbox of level '{policy.level}' works here ({reasons})",
            hint="apt-get install bubblewrap, allow user namespaces, or accept a lower level explicitly",
        )

    @staticmethod
    def probe() -> list[Probe]:
        """Every backend, tried."""
        return [probe_backend(b.name) for b in BACKENDS]

    @property
    def backend(self) -> str:
        return self._backend.name

    @property
    def level(self) -> Level:
        return self._backend.level

    @property
    def why(self) -> str:
        """One line for people: what holds the code, and what the better backends lack."""
        better = []
        for candidate in BACKENDS:
            if candidate is self._backend:
                break
            better.append(f"{candidate.name}: {probe_backend(candidate.name).reason}")
        text = f"{self.level} isolation by {self.backend}"
        return f"{text} ({'; '.join(better)})" if better else text

    def with_policy(self, **changes: Any) -> Sandbox:
        """The same backend with other limits."""
        return type(self)(replace(self.policy, **changes), self.backend)

    def run(
        self,
        steps: Iterable[Step],
        files: Mapping[str, str | bytes] | None = None,
        collect: Sequence[str] = (),
    ) -> ExecResult:
        """Run `steps` one after the other in a new run folder.

        Args:
            files: relative path → content, written before the first step.
            collect: relative paths whose content is wanted afterwards.

        Returns:
            what happened; a program that misbehaves is a status, never an exception.

        Raises:
            ConfigError: a malformed step or path.
        """
        steps = list(steps)
        job = self.job(steps, files, collect)
        limit = sum(self.policy.wall_s if s.wall_s is None else s.wall_s for s in steps) + GRACE
        start = time.monotonic()
        running = Running(self._backend.launch(self.policy), job)
        data = running.finish(start + limit, self._most_bytes(len(steps)))
        wall = time.monotonic() - start
        if data is None:
            return ExecResult("timeout" if wall >= limit else "sandbox_error", level=self.level, wall_s=wall,
                              why=running.said)  # fmt: skip
        try:
            return replace(parse_result(data), level=self.level, wall_s=wall, why=running.said)
        except (ValueError, IndexError, UnicodeDecodeError):
            why = running.said or "the runner ended without a result"
            return ExecResult("sandbox_error", level=self.level, wall_s=wall, why=why)

    def worker(self, source: str, **options: Any) -> Any:
        """A warm interpreter inside this sandbox that answers calls of the functions in `source`; see `Worker`."""
        from core.execution.worker import Worker

        return Worker(self, source, **options)

    def job(
        self, steps: Sequence[Step], files: Mapping[str, str | bytes] | None, collect: Sequence[str]
    ) -> dict[str, Any]:
        """What the runner is told."""
        p = self.policy
        content = {check_name(n): c.encode() if isinstance(c, str) else bytes(c) for n, c in (files or {}).items()}
        limits = {
            "CPU": max(1, round(p.cpu_s)), "FSIZE": p.fsize_mb << 20, "NOFILE": p.max_fds, "CORE": 0,
            "NPROC": p.max_procs + 1,
        }  # fmt: skip
        if p.address_space:
            limits["AS"] = (p.mem_mb + 256) << 20
        if self.level != "strict" or _KERNEL < (5, 14):
            limits["NPROC"] += _processes_of(backends.NOBODY if os.geteuid() == 0 else os.getuid())
        return {
            "steps": [
                {
                    "argv": list(s.argv),
                    "wall": float(p.wall_s if s.wall_s is None else s.wall_s),
                    "stdin": s.stdin,
                    "only_if": s.only_if,
                }
                for s in steps
            ],
            "files": content,
            "collect": [check_name(name) for name in collect],
            "limits": limits,
            "memory_bytes": p.mem_mb << 20,
            "output_bytes": p.max_output_kb << 10,
            "artifact_bytes": p.max_artifact_mb << 20,
            "disk_bytes": p.tmp_mb << 20,
            "inodes": p.max_inodes,
            "env": dict(p.env),
            "keep": [],
            "dumpable": False,
        }

    def _most_bytes(self, steps: int) -> int:
        return (self.policy.max_output_kb << 10) * steps + (self.policy.max_artifact_mb << 20) + (1 << 20)


@functools.cache
def probe_backend(name: str) -> Probe:
    """Start `true` in the backend, once in the life of this process."""
    candidate = backends.backend(name)
    policy = Policy(wall_s=5, level="weak")
    reason = backends.why_not(candidate, policy)
    if reason is None:
        box = Sandbox.__new__(Sandbox)
        box.policy, box._backend = policy, candidate
        done = box.run([Step(["true"])])
        if done.ok:
            return Probe(name, candidate.level, True, "works")
        reason = done.why.splitlines()[-1] if done.why else f"a trial run ended with {done.status}"
    return Probe(name, candidate.level, False, reason)


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


_KERNEL = _kernel()


def _processes_of(uid: int) -> int:
    """Threads of all processes of `uid`, which RLIMIT_NPROC counts."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return total
