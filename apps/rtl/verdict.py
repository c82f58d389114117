"""The letters of a verdict, and what a finished run says by the rules of VerilogEval.

Pinckney et al. 2024 sort compile and simulation logs into letters; here they are sorted in the same order, and two
letters are added: X for code that the policy refuses and I for a problem that nobody can solve. `mode` "v1" and "v2"
follow the official rules to the letter, "strict" (in `harness.py`) believes less.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from apps.rtl.syntax import Diagnostic

MEANING = {
    ".": "passes", "S": "syntax error", "C": "does not compile", "e": "needs an explicit cast",
    "0": "constant of size zero", "n": "process that never triggers", "w": "assigns to a wire in a process",
    "m": "unknown module", "p": "unknown name", "c": "no clock to bind", "T": "timeout",
    "r": "differs, probably by its reset", "R": "differs from the reference", "X": "refused by the policy",
    "I": "the problem itself is invalid", "E": "the check could not be run",
}  # fmt: skip
STAGES = ("extract", "policy", "compile", "function")
_STAGE = {".": "function", "X": "policy", "T": "function", "r": "function", "R": "function"}


@dataclass(frozen=True)
class RtlVerdict:
    """What became of an answer.

    Args:
        letter: one of `MEANING`. mismatches, samples: by the testbench, where it counts them.
        code: the Verilog that was taken from the answer. diagnostics: about its lines.
        mismatch: the first difference: {"signal", "time", "table"}, where it is known.
        engine: which simulator decided. cached: the run was known. seconds: it took.
        detail: one line more than the meaning.
    """

    letter: str
    mismatches: int | None = None
    samples: int | None = None
    code: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()
    mismatch: dict[str, Any] | None = None
    engine: str = "iverilog"
    cached: bool = False
    seconds: float = 0.0
    detail: str = ""
    log: str = field(default="", repr=False)
    wave: bytes | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        return self.letter == "."

    @property
    def stage(self) -> str:
        """The furthest stage that was reached."""
        if self.letter == "S" and not self.code:
            return "extract"
        return _STAGE.get(self.letter, "compile")

    @property
    def score(self) -> float:
        """Share of matching samples; 1 for a pass, 0 for what did not run."""
        if self.passed:
            return 1.0
        if self.stage != "function" or not self.samples or self.mismatches is None:
            return 0.0
        return max(0.0, min(1.0 - 1e-9, 1 - self.mismatches / self.samples))

    @property
    def meaning(self) -> str:
        return MEANING[self.letter] + (f": {self.detail}" if self.detail else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the log and the wave."""
        plain = asdict(self)
        plain["diagnostics"] = [str(d) for d in self.diagnostics]
        return {k: v for k, v in plain.items() if k not in ("log", "wave")} | {"meaning": self.meaning}


_FIRST = (
    ("syntax error", "S"),
    ("error: This assignment requires an explicit cast", "e"),
    ("error: Sized numeric constant must have a size greater than zero", "0"),
    ("warning: always_comb process has no sensitivities", "n"),
    ("found no sensitivities so it will never trigger", "n"),
    ("is declared here as wire", "w"),
    ("Unknown module type", "m"),
    ("Unable to bind wire/reg/memory `clk'", "c"),
    ("TIMEOUT", "T"),
)
_MISMATCHES = re.compile(r"^Mismatches: (\d+) in (\d+) samples$")
_RESETS = ("posedge reset", "negedge reset", "posedge r)")


def letter_v2(log: str, code: str) -> tuple[str, int | None, int | None]:
    """The letter, mismatches and samples of a combined compile and simulation log, by the rules of version 2."""
    error = unbound = clean = False
    mismatches = samples = None
    for line in log.splitlines():
        for words, letter in _FIRST:
            if words in line:
                return letter, mismatches, samples
        error |= "error" in line
        unbound |= "Unable to bind wire/reg" in line
        if match := _MISMATCHES.match(line):
            mismatches, samples = int(match[1]), int(match[2])
            clean |= mismatches == 0
    if unbound:
        return "p", mismatches, samples
    if error:
        return "C", mismatches, samples
    if clean:
        return ".", mismatches, samples
    reset = any(words in line for line in code.splitlines() for words in _RESETS)
    return ("r" if reset else "R"), mismatches, samples


def passed_v1(out: str, err: str) -> tuple[bool, str]:
    """Whether a run passes by the rules of version 1, and its wording: anything on the error stream is a failure."""
    if "syntax error" in err:
        return False, "failed: syntax error."
    if err:
        return False, "failed: compile error."
    match = re.search(r"Mismatches: ([0-9]+) in ([0-9]+) samples", out)
    if match is None:
        return False, "failed: info string not matched."
    mismatches, samples = int(match[1]), int(match[2])
    return mismatches == 0, "passed" if mismatches == 0 else f"failed: {mismatches} out of {samples} samples."
