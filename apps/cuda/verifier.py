"""The harness as a verifier of the refine loop and of training: stages, scores, and words for the model."""

from __future__ import annotations

import math

from apps.cuda.example import CudaExample
from apps.cuda.harness import CudaHarness
from apps.cuda.verdict import MEANING, STAGES, CudaVerdict
from core.inference.refine import Verdict


class CudaVerifier:
    """Judges kernels.

    Args:
        harness: does the work.
    """

    stages: tuple[str, ...] = STAGES

    def __init__(self, harness: CudaHarness) -> None:
        self.harness = harness

    def verify(self, task: CudaExample, text: str, *, partial: bool = False) -> Verdict:
        """The verdict with feedback; a `partial` text is only held to the policy, as it cannot compile yet."""
        if partial:
            refused = self.harness.static(text)
            bad = refused is not None and refused.status == "policy"
            return Verdict("policy", False, 0.0 if bad else 0.5, refused.meaning if bad and refused else "")
        found = self.harness.verify(task, text)
        metrics = {"status": found.status, "ms": found.timing.median if found.timing else None,
                   "speedup": found.speedup()}  # fmt: skip
        return Verdict(found.stage, found.passed, score_in_stage(found), feedback(found), metrics,
                       {"verdict": found}, found.seconds)  # fmt: skip


def score_in_stage(verdict: CudaVerdict) -> float:
    """Within [0, 1]: the share of trials that are right; for a kernel that passes, more the faster it is.

    A pass of t milliseconds scores 1 / (1 + log2(1 + t)), so that every improvement counts and none reaches 1.
    """
    if verdict.passed and verdict.timing is not None:
        return 1.0 / (1.0 + math.log2(1.0 + max(verdict.timing.median, 0.0)))
    return verdict.score


def feedback(verdict: CudaVerdict, most: int = 5) -> str:
    """What to tell a model: the first diagnostics with their source lines, the worst element, or time and resources."""
    first = verdict.diagnostics[0] if verdict.diagnostics else None
    said = MEANING[verdict.status] if first is not None else verdict.meaning
    lines = ["It is right." if verdict.passed else f"Verdict: {said}."]
    source = verdict.code.splitlines()
    for mark in verdict.diagnostics[:most]:
        excerpt = source[mark.line - 1].strip()[:120] if 0 < mark.line <= len(source) else ""
        lines.append(str(mark)[:240] + (f"   | {excerpt}" if excerpt else ""))
    if verdict.timing is not None:
        kind = "estimated" if verdict.timing.modelled else "measured"
        lines.append(f"time: {verdict.timing.median:.4g} ms ({kind})")
        for name, base in verdict.baselines.items():
            lines.append(f"{name} PyTorch: {base.median:.4g} ms")
    for used in verdict.usage[: most if verdict.passed else 0]:
        lines.append(f"{used.kernel} on {used.arch}: {used.registers} registers, {used.spills} bytes spilled, "
                     f"{used.shared} bytes of shared memory")  # fmt: skip
    if verdict.passed and (requests := verdict.counts.get("requests")):
        lines.append(
            f"sectors a warp's access: {verdict.counts['sectors'] / requests:.1f} (4 is the least for 4-byte words)"
        )
    return "\n".join(lines)
