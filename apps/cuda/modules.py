"""The verdict on a KernelBench answer: a Python module that defines `ModelNew`, with inline CUDA or Triton kernels.

    ModuleHarness().verify(example, answer).meaning

The policy reads its syntax tree; what passes runs in a fresh process of the sandbox that gets inputs and returns
outputs, and never holds the expected ones. Without a GPU, Triton kernels run in Triton's interpreter where it is
installed; inline CUDA then stays unchecked, which is never a pass.
"""

from __future__ import annotations

import base64
import importlib.util
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from apps.cuda import python_policy
from apps.cuda.compare import compare
from apps.cuda.device import gpus
from apps.cuda.example import CudaExample
from apps.cuda.oracle import SMALL_CASE, Case, InvalidProblem, Oracle, as_array, bundled, site_packages
from apps.cuda.timing import TimingOptions, believable, summary
from apps.cuda.verdict import CudaVerdict, Status
from core.errors import SandboxError
from core.execution import ExecPool, Policy, Sandbox, Worker

_FENCE = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:^```|\Z)", re.S | re.M)


class ModuleHarness:
    """Judges answers in KernelBench's form. Safe to share between threads.

    Args:
        trials, nearby, level, workers: as in `CudaHarness`. torch_ops: allow high-level operators of torch in forward.
        seconds: of one candidate. gpu: "auto" or "none". timing: of a GPU.
    """

    def __init__(self, *, trials: int = 6, nearby: bool = True, level: str = "strict", workers: int | None = None,
                 torch_ops: bool = False, seconds: float = 120.0, gpu: str = "auto", small: int = SMALL_CASE,
                 timing: TimingOptions | None = None) -> None:  # fmt: skip
        self.level, self.workers, self.torch_ops, self.seconds = level, workers, torch_ops, seconds
        self.timing = timing or TimingOptions()
        self.oracle = Oracle(level, trials, 0, small, nearby)
        self.gpu = gpu != "none" and gpus() > 0

    def verify_many(self, pairs: Iterable[tuple[CudaExample, str]]) -> Iterator[CudaVerdict]:
        """Verdicts in order, several at a time."""
        with ExecPool(self.workers) as pool:
            yield from pool.imap(lambda pair: self.verify(*pair), pairs)

    def verify(self, example: CudaExample, answer: str) -> CudaVerdict:
        """The verdict on an answer. A bad answer is a status, never an exception."""
        start = time.perf_counter()
        return replace(self._verify(example, extract(answer)), seconds=time.perf_counter() - start)

    def _verify(self, example: CudaExample, code: str) -> CudaVerdict:
        if not code.strip():
            return CudaVerdict("empty")
        if found := python_policy.violations(code, torch_ops=self.torch_ops):
            return CudaVerdict("policy", code, "", str(found[0]), tuple(found))
        base = CudaVerdict("error", code, flags=python_policy.flags(code), engine="GPU" if self.gpu else "CPU")
        if not self.gpu and (missing := unchecked(code)):
            return replace(base, status="unsupported_on_cpu", detail=missing)
        try:
            cases = self.oracle.cases(example)
        except InvalidProblem as error:
            return replace(base, status="invalid_problem", detail=str(error))
        with module_worker(self.level, self.seconds) as worker:
            answer = worker.call("run_module", code, example.reference, [_row(c) for c in cases])
            if answer.status != "ok":
                status: Status = "timeout" if answer.status == "timeout" else "fault"
                return replace(base, status=status, detail=answer.error or answer.status)
            base = self._judged(base, answer.value, cases, example)
            if base.status != "passes" or not self.gpu or not self.timing.enabled:
                return base
            flush = int(200e6)
            timed = worker.call("time_module", code, example.reference, example.sizes, 1, self.timing.repeats, flush)
        if timed.status != "ok":
            return replace(base, status="fault", detail=f"at full size: {timed.error or timed.status}")
        return self._timed(base, timed.value)

    @staticmethod
    def _timed(base: CudaVerdict, reply: dict[str, Any]) -> CudaVerdict:
        timing = summary(reply["samples"]["candidate"])
        if reply["relative"] > 2e-2:
            return replace(base, status="mismatch", detail=f"at full size: off by {reply['relative']:.3g}")
        status, detail = believable(timing, 0.0, reply["event_ms"], reply["wall_ms"])
        return replace(base, status=status, detail=detail, timing=timing,  # type: ignore[arg-type]
                       baselines={"eager": summary(reply["samples"]["eager"])})  # fmt: skip

    @staticmethod
    def _judged(base: CudaVerdict, reply: dict[str, Any], cases: list[Case], example: CudaExample) -> CudaVerdict:
        trials = []
        for case, rows in zip(cases, reply["outputs"]):
            specs = case.signature.outputs
            if len(rows) != len(specs) or any(tuple(r[1]) != s.shape for r, s in zip(rows, specs.values())):
                return replace(base, status="mismatch", detail=f"the output has another shape ({case.shapes})")
            got = {name: as_array(*row) for name, row in zip(specs, rows)}
            tolerances = {name: case.tolerance(name, example.tolerance) for name in specs}
            kinds = {name: spec.dtype for name, spec in specs.items()}
            trials.append(compare(got, dict(case.expected), kinds, tolerances, shapes=case.shapes))
        base = replace(base, trials=tuple(trials))
        if reply["status"] != "ok":
            return replace(base, status="fault", detail=reply["detail"])
        wrong = next((t for t in trials if not t.passed), None)
        if wrong is None:
            return replace(base, status="passes")
        worst = wrong.worst or {}
        detail = f"{worst.get('output')}{worst.get('index')} is {worst.get('got')}, expected {worst.get('expected')}"
        return replace(base, status="mismatch", detail=f"{detail} ({wrong.shapes})")


def extract(answer: str) -> str:
    """The module of an answer: its first fenced block of Python that defines ModelNew, else all of it."""
    blocks = [m[1] for m in _FENCE.finditer(answer)]
    return next((b for b in blocks if "ModelNew" in b), answer if not blocks else blocks[0])


def unchecked(code: str) -> str:
    """Why this machine, without a GPU, cannot run the module; "" where it can."""
    if "load_inline" in code:
        return "inline CUDA needs a GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return ""


def module_worker(level: str, seconds: float) -> Worker:
    """A fresh process for one candidate."""
    import glob
    import os

    paths = site_packages()
    devices = tuple(sorted(p for p in glob.glob("/dev/nvidia*") if not os.path.isdir(p))) if gpus() else ()
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    env |= {"OMP_NUM_THREADS": "1"} | ({} if gpus() else {"TRITON_INTERPRET": "1"})
    seen = ("/sys",) if devices and os.path.isdir("/sys") else ()
    policy = Policy(
        wall_s=seconds, mem_mb=32768 if devices else 4096, address_space=False, max_procs=256, max_fds=4096,
        max_output_kb=64 << 10, tmp_mb=1024, fsize_mb=512, ro=(*paths, *seen), devices=devices, env=env,
        level=level,  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        source = bundled("cases", "modules", exports="run_module, time_module")
        return Worker(Sandbox.best(policy), source, timeout_s=seconds, startup_s=120, paths=paths)
    except SandboxError as error:
        raise SandboxError(f"no process for KernelBench modules: {error.what}", hint=error.hint) from error


def _row(case: Case) -> dict[str, Any]:
    specs = case.signature.inputs
    packed = {n: [s.dtype, list(s.shape), base64.b64encode(case.inputs[n]).decode()] for n, s in specs.items()}
    given = {n: row for n, row in packed.items() if n in case.given}
    return {"inputs": given, "weights": {n: r for n, r in packed.items() if n not in given}, "sizes": dict(case.sizes),
            "seed": 0}  # fmt: skip
