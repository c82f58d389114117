"""Kernels against their problems: compile@k, correct@k, fast_p and speedups, by verdicts that can be trusted.

    report = CudaEvaluator(k=(1, 5)).score(predictions, examples)

A prediction is a text or a list of texts (samples). The evaluator runs compilers, the emulator and a GPU where there is
one, never a model: `graft eval cuda --reader kernelbench --data … --predictions samples.jsonl`. Problems whose own
reference fails count for nobody and are listed; so are kernels that only a GPU could check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.cuda.example import CudaExample
from apps.cuda.metrics import THRESHOLDS, fast_p, geometric_mean_speedup
from apps.cuda.verdict import CudaVerdict
from core.errors import BackendUnavailable, SandboxError
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.figures import mean_percent, pass_metric, share
from core.evaluation.passk import samples_of, sizes_of
from core.evaluation.report import Metric, Report

_FAST = tuple(f"fast_{p:g}" for p in THRESHOLDS)
_KNOWN = ("pass@1", "compile@1", "match", "empty", "flagged", *_FAST, "speedup")


class CudaEvaluator(BaseEvaluator):
    """Scores kernels.

    Args:
        metrics: names; None computes all. pass@k and compile@k are there for every k in `k`.
        k: sizes of the samples asked about; one larger than the number of samples is skipped with the reason.
        baseline: what fast_p and speedup compare with: eager, compile or max-autotune.
        archs, trials, nearby, gpu, sandbox, workers, cache, timeout_s: of the harness.
    """

    name = "cuda"
    primary = "pass@1"
    known = _KNOWN

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        *,
        k: Sequence[int] = (1,),
        baseline: str = "eager",
        archs: Sequence[str] = ("sm_90",),
        trials: int = 6,
        nearby: bool = True,
        gpu: str = "auto",
        sandbox: str = "strict",
        workers: int | None = None,
        timeout_s: float = 30.0,
        cache: str | Path | None = None,
        bootstrap: int = 1000,
        seed: int = 12345,
    ) -> None:
        super().__init__(metrics)
        self.k, self.baseline, self.bootstrap, self.seed = sizes_of(k), baseline, bootstrap, seed
        self.settings: dict[str, Any] = {
            "archs": tuple(archs), "trials": trials, "nearby": nearby, "gpu": gpu, "level": sandbox, "workers": workers,
            "cache": cache,
        }  # fmt: skip
        self.timeout_s = timeout_s
        self._harness: Any = None

    @property
    def harness(self) -> Any:
        """The judge, made once."""
        if self._harness is None:
            from apps.cuda.harness import CudaHarness, Limits
            from apps.cuda.timing import TimingOptions

            timing = TimingOptions(baselines=(self.baseline,))
            limits = Limits(function_s=self.timeout_s)
            self._harness = CudaHarness(**self.settings, limits=limits, timing=timing)
        return self._harness

    def score(self, predictions: Sequence[str | Sequence[str]], examples: Sequence[CudaExample]) -> Report:
        """Score samples of problems.

        Raises:
            DataError: nothing to score, or lengths that differ, naming the first index without a partner.
        """
        self.check(predictions, examples)
        samples = samples_of(predictions)
        try:
            pairs = [(example, text) for example, texts in zip(examples, samples) for text in texts]
            found = iter(list(self.harness.verify_many(pairs)))
        except (BackendUnavailable, SandboxError) as error:
            return self._skipped(samples, examples, error)
        return self._report(samples, examples, [[next(found) for _ in texts] for texts in samples])

    def _report(self, samples, examples, verdicts: list[list[CudaVerdict]]) -> Report:
        invalid = [i for i, row in enumerate(verdicts) if any(v.status == "invalid_problem" for v in row)]
        unjudged = [i for i, row in enumerate(verdicts) if any(v.status == "unsupported_on_cpu" for v in row)]
        valid = [i for i in range(len(verdicts)) if i not in invalid and i not in unjudged]
        flat = [v for i in valid for v in verdicts[i]]
        metrics: dict[str, Metric] = {}
        for k in sorted({1, *self.k}):
            metrics[f"pass@{k}"] = self._at(k, [(len(verdicts[i]), sum(v.correct for v in verdicts[i])) for i in valid])
            metrics[f"compile@{k}"] = self._at(
                k, [(len(row), sum(v.compiled for v in row)) for i, row in enumerate(verdicts) if i not in invalid]
            )
        metrics["match"] = mean_percent([v.score for v in flat if v.trials], "nothing was run")
        metrics["empty"] = share([not text.strip() for texts in samples for text in texts], higher=False)
        metrics["flagged"] = share([bool(v.flags) or v.status.endswith("_timing") for v in flat], higher=False)
        metrics |= self._speeds([verdicts[i] for i in valid])
        wanted = set(self.metrics) | {f"{name}@{k}" for k in self.k for name in ("pass", "compile")}
        problems = [{"id": examples[i].id, "reason": verdicts[i][0].detail} for i in invalid]
        signature = {
            "engine": self.harness.engine, "isolation": self.harness.level, "tools": self.harness.versions(),
            "archs": list(self.settings["archs"]), "trials": self.settings["trials"], "nearby": self.settings["nearby"],
            "elements_of_a_trial": self.harness.oracle.limit,
            "statuses": dict(Counter(v.status for row in verdicts for v in row)), "baseline": self.baseline,
            "flags": dict(Counter(f for v in flat for f in v.flags)), "problems": len(examples),
            "passes_not_looked_at": dict(Counter(name for v in flat if v.passed for name in v.blind)),
            "samples_per_problem": sorted({len(texts) for texts in samples}), "invalid_problems": problems,
            "only_a_gpu_can_check": [examples[i].id for i in unjudged],
        }  # fmt: skip
        rows = [self._row(i, e, t, v) for i, (e, t, v) in enumerate(zip(examples, samples, verdicts))]
        return Report(
            self.name, {n: m for n, m in metrics.items() if n in wanted}, signature, rows, problems, self.primary
        )

    def _speeds(self, verdicts: Sequence[Sequence[CudaVerdict]]) -> dict[str, Metric]:
        """fast_p and speedup of each problem's first sample."""
        first = [row[0] for row in verdicts]
        judged = [v for v in first if not v.correct or (v.timing is not None and self.baseline in v.baselines)]
        if not first or len(judged) < len(first) or all(v.timing is None for v in judged) or not self.harness_times:
            reason = "no GPU timed the kernels"
            return {name: Metric(None, 0, skipped=reason) for name in (*_FAST, "speedup")}
        right = [v.passed for v in judged]
        base = [v.baselines[self.baseline].median if v.passed else 1.0 for v in judged]
        mine = [v.timing.median if v.passed and v.timing else 1.0 for v in judged]
        found = {f"fast_{p:g}": Metric(fast_p(right, base, mine, p), len(judged)) for p in THRESHOLDS}
        found["speedup"] = Metric(geometric_mean_speedup(right, base, mine), sum(right), unit="x")
        return found

    @property
    def harness_times(self) -> bool:
        """Whether times were measured, not estimated."""
        return self.harness.engine != "emulator"

    def _at(self, k: int, counts: Sequence[tuple[int, int]]) -> Metric:
        return pass_metric(counts, k, bootstrap=self.bootstrap, seed=self.seed)

    @staticmethod
    def _row(index: int, example: CudaExample, texts: Sequence[str], verdicts: Sequence[CudaVerdict]) -> dict[str, Any]:
        best = max(range(len(texts)), key=lambda i: (verdicts[i].correct, verdicts[i].score))
        chosen = verdicts[best]
        return {
            **({"texts": list(texts)} if len(texts) > 1 else {}),
            "id": example.id if example.id is not None else str(index), "input": example.spec or example.name,
            "prediction": texts[best], "score": round(chosen.score, 4), "status": chosen.status,
            "passed": sum(v.correct for v in verdicts), "samples": len(texts), "verdict": chosen.meaning,
            "ms": chosen.timing.median if chosen.timing else None,
            "ms_is": "estimated" if chosen.timing and chosen.timing.modelled else "measured",
            "flags": list(chosen.flags), "family": example.family, "level": example.level, "split": example.split,
        }  # fmt: skip

    def _skipped(self, samples, examples, error) -> Report:
        reason = f"{error.what} {error.hint or ''}".strip()
        names = [*self.metrics, *(f"pass@{k}" for k in self.k if f"pass@{k}" not in self.metrics)]
        metrics = {name: Metric(None, 0, skipped=reason) for name in sorted(names, key=lambda n: n != self.primary)}
        metrics["empty"] = share([not text.strip() for texts in samples for text in texts], higher=False)
        rows = [{"id": e.id or str(i), "input": e.spec, "prediction": t[0]} for i, (e, t) in
                enumerate(zip(examples, samples))]  # fmt: skip
        return Report(self.name, metrics, {"skipped": reason}, rows, [], "empty")
