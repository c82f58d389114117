"""Reports on answers that are no modules: assertions about a design, and bugs found in C++ for synthesis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from apps.rtl.example import RtlExample
from core.errors import BackendUnavailable, SandboxError
from core.evaluation.figures import share
from core.evaluation.report import Metric, Report
from core.execution import ExecCache, ExecPool

ASSERTION_METRICS = ("proved", "valid", "falsified", "vacuous", "undecided", "coverage", "written")
HLS_METRICS = ("type", "line", "repair")
METRICS = {"assertions": ASSERTION_METRICS, "hls": HLS_METRICS}


def report_on(
    task: str, samples: Sequence[Sequence[str]], examples: Sequence[RtlExample], wanted: Sequence[str], **how: Any
) -> Report:
    """The report of a task in `METRICS`; of several samples of an example all count alike.

    Args:
        how: `workers` and `cache` of the checks.
    """
    metrics, rows, signature, skipped = (_assertions if task == "assertions" else _hls)(samples, examples, **how)
    chosen = {name: metrics[name] for name in METRICS[task] if name in wanted} or metrics
    return Report("rtl", chosen, {"task": task, **signature}, rows, skipped, next(iter(chosen)))


def _assertions(samples, examples, *, workers: int | None = None, cache: str | None = None):
    """Shares are of the assertions written; an answer without any is one invalid assertion."""
    from apps.rtl.assertions.score import score

    store = ExecCache(cache) if cache is not None else None
    vhdl = [e.id or e.top for e in examples if e.reference is None]
    jobs = [(e, text) for e, texts in zip(examples, samples) for text in texts if e.reference is not None]
    try:
        with ExecPool(workers) as pool:
            found = list(pool.imap(lambda job: score(*job, cache=store), jobs))
    except (BackendUnavailable, SandboxError) as error:
        reason = f"{error.what} {error.hint or ''}".strip()
        metrics = {name: Metric(None, 0, skipped=reason) for name in ASSERTION_METRICS}
        return metrics, [], {"skipped": reason}, []
    statuses = [status for report in found for status in [c.status for c in report.checked] or ["invalid"]]
    metrics = {
        "proved": share([s == "proved" for s in statuses]),
        "valid": share([s != "invalid" for s in statuses]),
        **{s: share([x == s for x in statuses], False) for s in ("falsified", "vacuous", "undecided")},
    }
    covered = [100 * r.coverage for r in found if r.coverage is not None]
    none = "no design with state had an assertion that could be checked"
    metrics["coverage"] = Metric(sum(covered) / len(covered), len(covered), unit="%") if covered else Metric(
        None, 0, skipped=none)  # fmt: skip
    written = sum(len(r.checked) for r in found)
    metrics["written"] = Metric(written / max(1, len(found)), len(found))
    rows = [
        {"id": e.id or e.top, "input": e.spec, "reference": e.answer, "prediction": text, "counts": dict(r.counts),
         "coverage": r.coverage, "checked": [[c.status, c.text, c.why] for c in r.checked]}
        for (e, text), r in zip(jobs, found)
    ]  # fmt: skip
    skipped = [{"id": name, "reason": "not checked: VHDL, or no design at all"} for name in vhdl]
    return metrics, rows, {"statuses": dict(Counter(statuses)), "prover": _prover(found), "not_checked": vhdl}, skipped


def _prover(found: Sequence[Any]) -> str:
    return found[0].header if found else "none"


def _hls(samples, examples, **_: Any):
    from apps.rtl.hls.task import score

    jobs = [(e, text) for e, texts in zip(examples, samples) for text in texts]
    found = [score(text, e.answer or "") for e, text in jobs]
    most = Counter(e.family for e in examples).most_common(1)[0]
    metrics = {
        "type": share([s.kind for s in found]), "line": share([s.line for s in found]),
        "repair": share([s.repair for s in found]),
    }  # fmt: skip
    rows = [
        {"id": e.id or e.top, "input": e.spec, "reference": e.answer, "prediction": text, "type": s.kind,
         "line": s.line, "repair": s.repair, "family": e.family, "split": e.split}
        for (e, text), s in zip(jobs, found)
    ]  # fmt: skip
    chance = f"always {most[0]}: {100 * most[1] / len(examples):.1f} % of types"
    return metrics, rows, {"bugs": len(examples), "chance": chance}, []
