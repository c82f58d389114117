"""The harness as a verifier of the refine loop and of training: stages, scores, and words for the model."""

from __future__ import annotations

from typing import Any

from apps.rtl.example import RtlExample
from apps.rtl.harness import RtlHarness
from apps.rtl.source import extract
from apps.rtl.vcd import mismatch_table
from apps.rtl.verdict import STAGES, RtlVerdict
from core.inference.refine import Verdict


class RtlVerifier:
    """Judges Verilog by a harness.

    Args:
        harness: does the work. wave: look at the waveform of a failure, so that the feedback shows values.
    """

    stages: tuple[str, ...] = STAGES

    def __init__(self, harness: RtlHarness, wave: bool = True) -> None:
        self.harness, self.wave = harness, wave

    def verify(self, task: RtlExample, text: str, *, partial: bool = False) -> Verdict:
        """The verdict with feedback; a `partial` text is only held to the policy, as it cannot compile yet."""
        if partial:
            code = extract(text, task.header)
            refused = self.harness._refused(task, code) if code else None
            return Verdict("policy" if refused else "extract", False, 0.0 if refused else 0.5, detail(refused))
        verdict = self.harness.verify(task, text, wave=self.wave)
        metrics = {"letter": verdict.letter, "mismatches": verdict.mismatches, "samples": verdict.samples}
        return Verdict(
            verdict.stage, verdict.passed, verdict.score, feedback(verdict), metrics,
            {"verdict": verdict}, verdict.seconds,
        )  # fmt: skip


def detail(verdict: RtlVerdict | None) -> str:
    """One line about a refusal."""
    return "" if verdict is None else verdict.meaning


def feedback(verdict: RtlVerdict, most: int = 4) -> str:
    """What to tell a model: the first diagnostics with their source lines, then at most one counterexample."""
    if verdict.passed:
        return "It passes."
    lines = [f"Verdict: {verdict.meaning}."]
    source = verdict.code.splitlines()
    for mark in [d for d in verdict.diagnostics if d.error][:most]:
        excerpt = source[mark.line - 1].strip()[:120] if 0 < mark.line <= len(source) else ""
        lines.append(f"line {mark.line}: {mark.message[:160]}" + (f"   | {excerpt}" if excerpt else ""))
    if verdict.mismatch:
        found: dict[str, Any] = verdict.mismatch
        lines.append(
            f"{verdict.mismatches} of {verdict.samples} samples differ; "
            f"output {found['signal']} first at time {found['time']}."
        )
        if verdict.wave:
            lines += mismatch_table(verdict.wave, found["time"], found["signal"])
    return "\n".join(lines)
