"""What became of an answer: how far it got, what was said about its lines, and what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Stage = Literal["policy", "compile", "function", "latency"]
STAGES: tuple[Stage, ...] = ("policy", "compile", "function", "latency")

Status = Literal[
    "passes", "empty", "policy", "plan", "compile", "mismatch", "fault", "timeout", "unsupported_on_cpu",
    "impossible_time", "suspicious_timing", "invalid_problem", "error",
]  # fmt: skip
MEANING: dict[str, str] = {
    "passes": "passes",
    "empty": "the answer holds no kernel",
    "policy": "refused by the policy",
    "plan": "the launch plan cannot be carried out",
    "compile": "does not compile",
    "mismatch": "differs from the reference",
    "fault": "a kernel misbehaves",
    "timeout": "a kernel does not end",
    "unsupported_on_cpu": "compiles, but only a GPU can check it",
    "impossible_time": "faster than the memory or the arithmetic of this device",
    "suspicious_timing": "its events do not agree with the clock on the wall",
    "invalid_problem": "the reference itself fails",
    "error": "the check could not be run",
}
_STAGE: dict[str, Stage] = {
    "passes": "latency", "empty": "policy", "policy": "policy", "plan": "policy", "compile": "compile",
    "mismatch": "function", "fault": "function", "timeout": "function", "unsupported_on_cpu": "function",
    "impossible_time": "latency", "suspicious_timing": "latency", "invalid_problem": "policy", "error": "policy",
}  # fmt: skip


@dataclass(frozen=True)
class Diagnostic:
    """A message about a line, counted from 1; 0 is about no line."""

    line: int
    message: str
    error: bool = True

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of an SM, by ptxas: registers, and bytes of spills, stack, shared and constant memory."""

    kernel: str
    arch: str
    registers: int
    spills: int = 0
    stack: int = 0
    shared: int = 0
    constant: int = 0


@dataclass(frozen=True)
class Trial:
    """One set of inputs: whether the output was right, how far off it was, and its worst element.

    Args:
        relative: ‖out − ref‖ / ‖ref‖. ulp: the largest distance in units of the last place of the output's type.
        worst: {"output", "index", "expected", "got"} of the element furthest beyond the tolerance.
    """

    passed: bool
    relative: float = 0.0
    ulp: float = 0.0
    unwritten: int = 0
    worst: dict[str, Any] | None = None
    shapes: str = ""


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median and 95 % interval with a cold L2, and the median with a warm one."""

    median: float
    low: float
    high: float
    warm: float = 0.0
    repeats: int = 0
    bound: float = 0.0
    modelled: bool = False


@dataclass(frozen=True)
class CudaVerdict:
    """What became of an answer.

    Args:
        status: one of `MEANING`. stage: the furthest that was reached. code, plan: taken from the answer.
        trials: the outcomes of the functional check. timing: of the candidate; None where it was not timed.
        baselines: name → timing of eager and compiled PyTorch. usage: by ptxas, a row a kernel and architecture.
        flags: what a reader should know, e.g. "precision_downgrade". engine: "emulator" or the GPU's name.
        counts: what the emulator counted a launch: loads, stores, sectors, barriers, …
        looks: who looked at a kernel that a GPU finds right, "emulator" and "compute-sanitizer" → "clean", or why it
        could not. log: what the tools said.
    """

    status: Status
    code: str = ""
    plan: str = ""
    detail: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()
    usage: tuple[Usage, ...] = ()
    trials: tuple[Trial, ...] = ()
    timing: Timing | None = None
    baselines: dict[str, Timing] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    engine: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    looks: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    seconds: float = 0.0
    log: str = field(default="", repr=False)

    @property
    def passed(self) -> bool:
        return self.status == "passes"

    @property
    def compiled(self) -> bool:
        return self.stage in ("function", "latency")

    @property
    def correct(self) -> bool:
        """Right on every trial; an impossible or suspicious time does not make it wrong, nor fast."""
        return self.stage == "latency"

    @property
    def stage(self) -> Stage:
        return _STAGE[self.status]

    @property
    def score(self) -> float:
        """Within the stage: share of trials passed; 1 for a pass."""
        if self.passed:
            return 1.0
        if self.stage == "function" and self.trials:
            return min(1 - 1e-9, sum(t.passed for t in self.trials) / len(self.trials))
        return 0.0

    @property
    def meaning(self) -> str:
        said = MEANING[self.status] + (f": {self.detail}" if self.detail else "")
        return said + "".join(f"; {name} did not look: {why}" for name, why in self.blind.items() if self.passed)

    @property
    def blind(self) -> dict[str, str]:
        """Of `looks`, who could not look, and why."""
        return {name: why for name, why in self.looks.items() if why != "clean"}

    def speedup(self, over: str = "eager") -> float | None:
        """Baseline time over this time; None where either is missing or the time is not believed."""
        base = self.baselines.get(over)
        if base is None or self.timing is None or not self.passed or self.timing.median <= 0:
            return None
        return base.median / self.timing.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the log."""
        plain = asdict(self)
        plain["diagnostics"] = [str(d) for d in self.diagnostics]
        plain.pop("log")
        return plain | {"meaning": self.meaning, "stage": self.stage}
