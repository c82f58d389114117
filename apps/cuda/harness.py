"""The verdict on a kernel that one can trust: policy, plan, machine code, outputs on many inputs, and time.

    harness = CudaHarness(archs=("sm_90",))
    harness.verify(example, answer).meaning

The same stages run with and without a GPU, as far as the hardware allows. Candidates are device code and a launch plan,
so nothing generated runs on the host; the expected output is made by another process and never where the kernel runs.
Every trial has fresh inputs, poisoned outputs and other addresses, odd shapes among them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from apps.cuda import policy, source
from apps.cuda.compare import compare
from apps.cuda.compiling import Compiled, Compiler, KernelCompiler, check_arch
from apps.cuda.emulator import Emulated, Emulator, Job
from apps.cuda.example import CudaExample
from apps.cuda.model import modelled
from apps.cuda.oracle import SMALL_CASE, Case, InvalidProblem, Oracle, TooLarge, decoded
from apps.cuda.plan import Plan, PlanError, parse_plan, resolve
from apps.cuda.sanitizer import PACKAGE, Sanitizer
from apps.cuda.timing import TimingOptions
from apps.cuda.verdict import CudaVerdict, Diagnostic, Trial
from core.errors import ConfigError
from core.execution import ExecCache, ExecPool, ToolMissing

Gpu = Literal["auto", "none", "require"]
_EMULATED = {"fault": "fault", "timeout": "timeout", "unsupported": "unsupported_on_cpu", "error": "error"}


@dataclass(frozen=True)
class Limits:
    """Seconds: of compiling for one architecture, of all emulated trials, of one call to the GPU."""

    compile_s: float = 60.0
    function_s: float = 30.0
    gpu_s: float = 300.0


class CudaHarness:
    """Judges answers. Safe to share between threads.

    Args:
        archs: what every candidate is compiled for, beside the GPU that is used; empty leaves the others out.
        trials: sets of inputs.
        gpu: "auto" uses one where there is one, "none" never, "require" raises without. nearby: also odd shapes.
        level: least isolation. limits: seconds. cache: a folder of known runs and cases. workers: at the same time.
        timing: how a GPU is timed. model: estimate a time where no GPU is, marked as such. sanitize: with a GPU, let
        the emulator and compute-sanitizer look at small cases too, for what a GPU gets right by luck; the verdict says
        who did (`looks`). size_limit: elements of a problem on the GPU; larger ones are made smaller, and the report
        says so.

    Raises:
        ToolMissing: no compiler. SandboxError: no isolation as asked. BackendUnavailable: no GPU, and one is required.
    """

    def __init__(
        self,
        *,
        archs: Sequence[str] = ("sm_90",),
        trials: int = 6,
        nearby: bool = True,
        gpu: Gpu = "auto",
        level: str = "strict",
        limits: Limits | None = None,
        cache: str | Path | None = None,
        workers: int | None = None,
        compiler: Compiler = "auto",
        timing: TimingOptions | None = None,
        model: bool = True,
        sanitize: bool = True,
        small: int = SMALL_CASE,
        size_limit: int = 1 << 26,
        seed: int = 0,
    ) -> None:
        if trials < 1:
            raise ConfigError(f"{trials} trials", where="trials", hint="give at least 1")
        if gpu not in ("auto", "none", "require"):
            raise ConfigError(f"unknown value '{gpu}'", where="gpu", hint="auto, none or require")
        for arch in archs:
            check_arch(arch)
        self.archs, self.level, self.limits, self.workers = tuple(archs), level, limits or Limits(), workers
        self.timing, self.model, self.sanitize = timing or TimingOptions(), model, sanitize
        self.size_limit, self.seed = size_limit, seed
        folder = Path(cache) if cache is not None else None
        self.cache = ExecCache(folder / "runs") if folder is not None else None
        self.oracle = Oracle(level, trials, seed, small, nearby, folder / "cases" if folder is not None else None)
        self._emulator: Emulator | None = None
        self._device: Any = None
        self._lock = threading.Lock()
        self.gpu = gpu
        if gpu != "none":
            from apps.cuda.device import Device

            self._device = Device.find(level, self.limits.gpu_s, required=gpu == "require")
        if self._device is not None and not {self._device.arch, f"{self._device.arch}a"} & set(archs):
            self.archs += (check_arch(self._device.arch),)
        self.compiler = KernelCompiler(level, self.cache, compiler, self.limits.compile_s) if self.archs else None
        self.sanitizer = Sanitizer.find(level) if sanitize and self._device is not None else None

    @property
    def engine(self) -> str:
        """What runs the functional check."""
        return self._device.name if self._device is not None else "emulator"

    def versions(self) -> dict[str, str]:
        """Programs and devices that the verdicts rest on."""
        found: dict[str, str] = {} if self.compiler is None else {self.compiler.tools.kind: self.compiler.tools.version}
        if self._device is None:
            return found | {"g++": self.emulator.version}
        found["gpu"] = self._device.described
        if self.sanitize:
            absent = f"absent (PyPI: {PACKAGE}), so no kernel was run under it"
            found["compute-sanitizer"] = absent if self.sanitizer is None else self.sanitizer.described
        return found

    @property
    def emulator(self) -> Emulator:
        """Made when first needed."""
        with self._lock:
            if self._emulator is None:
                self._emulator = Emulator(self.level, self.limits.function_s, self.cache)
            return self._emulator

    def close(self) -> None:
        """End the processes that are kept warm."""
        self.oracle.close()
        if self._device is not None:
            self._device.close()

    # ---- verdicts ----------------------------------------------------------------------------------------------

    def verify(self, example: CudaExample, answer: str) -> CudaVerdict:
        """The verdict on a model's answer. A bad answer is a status, never an exception."""
        start = time.perf_counter()
        found = self._verify(example, answer)
        return replace(found, seconds=time.perf_counter() - start)

    def verify_many(self, pairs: Iterable[tuple[CudaExample, str]]) -> Iterator[CudaVerdict]:
        """Verdicts in order, several at a time; a GPU is used by one at a time."""
        with ExecPool(self.workers) as pool:
            yield from pool.imap(lambda pair: self.verify(*pair), pairs)

    def static(self, answer: str) -> CudaVerdict | None:
        """The verdict of everything that needs no tool and no reference; None where nothing speaks against it."""
        code, plan = source.extract(answer)
        if not code.strip():
            return CudaVerdict("empty", code, plan)
        if found := policy.violations(code):
            return CudaVerdict("policy", code, plan, str(found[0]), tuple(found))
        if not source.kernels(code):
            return CudaVerdict("empty", code, plan)
        try:
            written = parse_plan(plan)
            missing = [r["kernel"] for r in written.launches if r["kernel"] not in source.kernels(code)]
            if missing:
                known = ", ".join(source.kernels(code))
                raise PlanError(f"the plan names the kernel '{missing[0]}'; the code has: {known}")
        except PlanError as error:
            return CudaVerdict("plan", code, plan, str(error), (Diagnostic(0, str(error)),))
        return None

    def _verify(self, example: CudaExample, answer: str) -> CudaVerdict:
        refused = self.static(answer)
        if refused is not None:
            return refused
        code, text = source.extract(answer)
        base = CudaVerdict("error", code, text, engine=self.engine)
        compiled: list[Compiled] = []
        if self.compiler is not None:
            compiled = self.compiler.compile_many(code, self.archs)
            base = replace(base, usage=tuple(u for c in compiled for u in c.usage), log=compiled[0].log,
                           cached=all(c.cached for c in compiled))  # fmt: skip
            bad = next((c for c in compiled if c.cubin is None), None)
            if bad is not None:
                return replace(base, status="compile", diagnostics=bad.diagnostics, detail=str(bad.diagnostics[0]))
        try:
            cases = self.oracle.cases(example)
        except TooLarge as error:
            return replace(base, status="unsupported_on_cpu", detail=str(error))
        except InvalidProblem as error:
            return replace(base, status="invalid_problem", detail=str(error))
        kernels, plan = source.kernels(code), parse_plan(text)
        try:
            jobs = _jobs(plan, kernels, cases)
        except PlanError as error:
            return replace(base, status="plan", detail=str(error), diagnostics=(Diagnostic(0, str(error)),))
        dtypes = {s.dtype for s in cases[0].signature.tensors.values()}
        base = replace(base, flags=policy.flags(code, dtypes))
        if self._device is None:
            done = self.emulator.run(code, kernels, jobs)
        else:
            done = self._device.run(self._cubin(compiled), jobs)
        base = judged(base, done, [*cases, cases[0]], example.tolerance)
        if base.status == "passes" and self._device is not None and self.sanitize:
            base = self._looked(base, code, kernels, jobs)
        if base.status != "passes":
            return base
        if self._device is not None and self.timing.enabled:
            with self._device.turn():
                return self._timed(base, example, plan, kernels, compiled)
        if self.model and self._device is None:
            return replace(base, timing=modelled(done.counts, base.usage, jobs[0].resolved, self.archs))
        return base

    def _cubin(self, compiled: Sequence[Compiled]) -> bytes:
        """Machine code for the GPU at hand."""
        fits = (self._device.arch, f"{self._device.arch}a")
        return next(c.cubin for c in compiled if c.arch in fits and c.cubin)

    def _looked(self, base: CudaVerdict, code: str, kernels: Any, jobs: Sequence[Job]) -> CudaVerdict:
        """A kernel that the GPU finds right, in the emulator and under compute-sanitizer; who could not look is told.

        Both see the case that no block need divide, if the reference allows one: it is the third.
        """
        try:
            seen = self.emulator.run(code, kernels, jobs[:3])
            looks = {"emulator": "clean" if seen.status == "ok" else seen.detail or seen.status}
        except ToolMissing as error:
            seen, looks = None, {"emulator": error.what}
        if seen is not None and seen.status == "fault":
            return replace(base, status="fault", detail=seen.detail, diagnostics=seen.diagnostics)
        if self.sanitizer is None:
            return replace(base, looks=looks | {"compute-sanitizer": f"absent (PyPI: {PACKAGE})"})
        return self._sanitized(self.sanitizer, replace(base, looks=looks), code, [*jobs[:1], *jobs[2:3]])

    def _sanitized(self, sanitizer: Sanitizer, base: CudaVerdict, code: str, jobs: Sequence[Job]) -> CudaVerdict:
        """Under compute-sanitizer, while nobody is timed."""
        assert self.compiler is not None
        arch = next(a for a in (self._device.arch, f"{self._device.arch}a") if a in self.archs)
        made = self.compiler.compile(code, arch, lines=True)
        if made.cubin is None:
            why = f"no line tables: {made.diagnostics[0]}"
            return replace(base, looks=base.looks | {"compute-sanitizer": why})
        with self._device.beside():
            found = sanitizer.run(made.cubin, jobs, racy="__shared__" in code)
        base = replace(base, log=f"{base.log}\n{found.said}".strip())
        if found.status == "fault":
            return replace(base, status="fault", detail=found.detail, diagnostics=found.diagnostics)
        return replace(base, looks=base.looks | {"compute-sanitizer": found.detail or "clean"})

    def _timed(self, base, example, plan, kernels, compiled) -> CudaVerdict:
        """A run at full size: right again, and how long it takes."""
        full = self._device.prepare(example, self.seed + 1, self.size_limit)
        if isinstance(full, str):
            return replace(base, status="invalid_problem", detail=full)
        try:
            resolved = resolve(plan, kernels, full.signature)
        except PlanError as error:
            return replace(base, status="plan", detail=f"at full size: {error}")
        flags = base.flags + (("smaller_than_published",) if full.sizes else ())
        found = self._device.measure(self._cubin(compiled), resolved, full, example.tolerance, self.timing)
        flags += tuple(found.flags)
        return replace(base, status=found.status, detail=found.detail, timing=found.timing, baselines=found.baselines,
                       flags=flags, trials=base.trials + found.trials)  # fmt: skip


def _jobs(plan: Plan, kernels: Any, cases: Sequence[Case]) -> list[Job]:
    """A job for each case, threads in alternating order, and the first case again the other way round."""
    made = []
    for number, case in enumerate([*cases, cases[0]]):
        inputs = [case.inputs[name] for name in case.signature.inputs]
        reverse = number % 2 == 1 if number < len(cases) else True
        made.append(Job(resolve(plan, kernels, case.signature), case.signature, inputs, reverse))
    return made


def judged(base: CudaVerdict, done: Emulated, cases: Sequence[Case], asked: float | None) -> CudaVerdict:
    """The verdict of finished runs: every output within its tolerance, every element written, nothing at fault."""
    trials: list[Trial] = []
    for case, outputs, missing in zip(cases, done.outputs, done.unwritten):
        specs = case.signature.outputs
        got = {name: decoded(outputs[name], spec) for name, spec in specs.items()}
        tolerances = {name: case.tolerance(name, asked) for name in specs}
        dtypes = {name: spec.dtype for name, spec in specs.items()}
        expected = {name: case.expected[name] for name in specs}
        trials.append(compare(got, expected, dtypes, tolerances, unwritten=sum(missing.values()), shapes=case.shapes))
    flags = base.flags
    loose = max((t.relative for t in trials if t.passed), default=0.0)
    if loose > 1e-6 and loose > 20 * max((c.eager for c in cases), default=0.0):
        flags += ("less_precise_than_eager",)
    base = replace(base, trials=tuple(trials), counts=dict(done.counts), flags=tuple(dict.fromkeys(flags)),
                   cached=base.cached and done.cached)  # fmt: skip
    if done.status != "ok":
        return replace(base, status=_EMULATED[done.status], detail=done.detail, diagnostics=done.diagnostics)  # type: ignore[arg-type]
    wrong = next((t for t in trials if not t.passed), None)
    if wrong is None:
        return replace(base, status="passes")
    if wrong.unwritten:
        detail = f"{wrong.unwritten} elements of the output are never written ({wrong.shapes})"
    elif wrong.worst is not None:
        worst = wrong.worst
        detail = (
            f"{sum(t.passed for t in trials)} of {len(trials)} trials are right; {worst['output']}{worst['index']} is "
            f"{worst['got']:.6g}, expected {worst['expected']:.6g} ({wrong.shapes})"
        )
    else:
        detail = wrong.shapes
    return replace(base, status="mismatch", detail=detail)
