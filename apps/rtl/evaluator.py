"""Verilog against its problems: pass@k by a verdict that can be trusted, beside the official one.

    report = RtlEvaluator(k=(1, 5)).score(predictions, examples)

A prediction is a text or a list of texts (samples). The evaluator runs simulators, never a model, so anybody's samples
can be scored: `graft eval rtl --reader verilogeval --data … --predictions samples.jsonl`. Problems whose own reference
fails count for nobody and are listed. Assertions are proved, and answers about HLS bugs compared (`answers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.rtl.answers import METRICS, report_on
from apps.rtl.example import RtlExample
from core.errors import BackendUnavailable, DataError, SandboxError
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.figures import mean_percent, pass_metric, share
from core.evaluation.passk import samples_of, sizes_of
from core.evaluation.report import Metric, Report

_KNOWN = ("pass@1", "compiles", "match", "empty", "official_pass@1")
_OTHERS = tuple(name for names in METRICS.values() for name in names)


class RtlEvaluator(BaseEvaluator):
    """Scores Verilog.

    Args:
        metrics: names; None computes all that apply. pass@k is there for every k in `k`.
        k: sizes of the samples asked about; one larger than the number of samples is skipped with the reason. None
            takes those of 1, 5 and 10 that there are samples for.
        mode, engine, sandbox, workers, sim_timeout_s, cache: of the harness.
        official: "v1", "v2" or "rtllm" adds the pass rate by those rules; None leaves it out, unless the metrics ask
            for it: then v2.
    """

    name = "rtl"
    primary = "pass@1"
    known = (*_KNOWN, *_OTHERS)

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        *,
        k: Sequence[int] | None = None,
        mode: str = "strict",
        engine: str = "auto",
        sandbox: str = "strict",
        workers: int | None = None,
        sim_timeout_s: float = 30.0,
        cache: str | Path | None = None,
        official: str | None = None,
        bootstrap: int = 1000,
        seed: int = 12345,
    ) -> None:
        official = official or ("v2" if "official_pass@1" in (metrics or ()) else None)
        super().__init__(metrics or [n for n in self.known if official or not n.startswith("official")])
        self.k = None if k is None else sizes_of(k)
        self.mode, self.engine, self.sandbox = mode, engine, sandbox
        self.workers, self.sim_timeout_s, self.cache, self.official = workers, sim_timeout_s, cache, official
        self.bootstrap, self.seed = bootstrap, seed
        self._made: dict[str, Any] = {}

    def harness(self, mode: str | None = None) -> Any:
        """The judge, made once for each mode."""
        mode = mode or self.mode
        if mode not in self._made:
            from apps.rtl.engines import Limits
            from apps.rtl.harness import RtlHarness

            self._made[mode] = RtlHarness(
                mode=mode, engine=self.engine, level=self.sandbox, cache=self.cache, workers=self.workers,  # type: ignore[arg-type]
                limits=Limits(simulate_s=self.sim_timeout_s),
            )  # fmt: skip
        return self._made[mode]

    def score(self, predictions: Sequence[str | Sequence[str]], examples: Sequence[RtlExample]) -> Report:
        """Score samples of problems.

        Raises:
            DataError: nothing to score, or lengths that differ, naming the first index without a partner.
        """
        self.check(predictions, examples)
        samples = samples_of(predictions)
        task, *more = sorted({e.task if e.task in METRICS else "modules" for e in examples})
        if more:
            raise DataError(f"examples of several tasks: {task}, {', '.join(more)}", hint="score each by itself")
        if task in METRICS:
            return report_on(task, samples, examples, self.metrics, workers=self.workers, cache=self.cache)
        try:
            verdicts = self._verdicts(samples, examples)
        except (BackendUnavailable, SandboxError) as error:
            return self._skipped(samples, examples, error)
        return self._report(samples, examples, verdicts)

    def _verdicts(self, samples: Sequence[Sequence[str]], examples: Sequence[RtlExample], mode: str | None = None):
        pairs = [(example, text) for example, texts in zip(examples, samples) for text in texts]
        found = iter(list(self.harness(mode).verify_many(pairs)))
        return [[next(found) for _ in texts] for texts in samples]

    def _report(self, samples, examples, verdicts) -> Report:
        valid = [i for i, row in enumerate(verdicts) if row[0].letter != "I"]
        metrics: dict[str, Metric] = {}
        counts = [(len(verdicts[i]), sum(v.passed for v in verdicts[i])) for i in valid]
        fewest = min(len(texts) for texts in samples)
        sizes = self.k or [k for k in (1, 5, 10) if k <= fewest]
        for k in sizes:
            metrics[f"pass@{k}"] = self._pass_at(counts, k)
        if "pass@1" not in metrics:
            metrics["pass@1"] = self._pass_at(counts, 1)
        flat = [v for i in valid for v in verdicts[i]]
        metrics["compiles"] = share([v.stage == "function" or v.passed for v in flat])
        metrics["match"] = mean_percent([v.score for v in flat if v.samples], "no testbench counted samples")
        metrics["empty"] = share([not text.strip() for texts in samples for text in texts], higher=False)
        if self.official:
            rows = self._verdicts(samples, examples, self.official)
            metrics["official_pass@1"] = self._pass_at([(len(r), sum(v.passed for v in r)) for r in rows], 1)
        wanted = set(self.metrics) | {f"pass@{k}" for k in sizes}
        invalid = [{"id": e.id, "reason": r[0].detail} for e, r in zip(examples, verdicts) if r[0].letter == "I"]
        signature = {
            "mode": self.mode, "isolation": self.harness().level, "tools": self.harness().versions(),
            "letters": dict(Counter(v.letter for row in verdicts for v in row)),
            "samples_per_problem": sorted({len(texts) for texts in samples}), "problems": len(examples),
            "invalid_problems": invalid,
            **({"official_rules": self.official} if self.official else {}),
        }  # fmt: skip
        rows = [self._row(i, e, t, v) for i, (e, t, v) in enumerate(zip(examples, samples, verdicts))]
        return Report(
            self.name, {n: m for n, m in metrics.items() if n in wanted}, signature, rows, invalid, self.primary
        )

    def _pass_at(self, counts: Sequence[tuple[int, int]], k: int) -> Metric:
        return pass_metric(counts, k, bootstrap=self.bootstrap, seed=self.seed)

    @staticmethod
    def _row(index: int, example: RtlExample, texts: Sequence[str], verdicts: Sequence[Any]) -> dict[str, Any]:
        best = max(range(len(texts)), key=lambda i: (verdicts[i].passed, verdicts[i].score))
        return {
            **({"texts": list(texts)} if len(texts) > 1 else {}),
            "id": example.id if example.id is not None else str(index), "input": example.spec,
            "reference": example.reference, "prediction": texts[best], "score": round(verdicts[best].score, 4),
            "passed": sum(v.passed for v in verdicts), "samples": len(texts),
            "letters": "".join(v.letter for v in verdicts), "verdict": verdicts[best].meaning,
            "family": example.family, "split": example.split,
        }  # fmt: skip

    def _skipped(self, samples, examples, error) -> Report:
        reason = f"{error.what} {error.hint or ''}".strip()
        names = {*self.metrics, *(f"pass@{k}" for k in self.k or (1,))} - set(_OTHERS)
        metrics = {name: Metric(None, 0, skipped=reason) for name in sorted(names, key=lambda n: n != self.primary)}
        metrics["empty"] = share([not text.strip() for texts in samples for text in texts], higher=False)
        rows = [{"id": e.id or str(i), "input": e.spec, "prediction": t[0]} for i, (e, t) in
                enumerate(zip(examples, samples))]  # fmt: skip
        return Report(self.name, metrics, {"skipped": reason}, rows, [], "empty")
