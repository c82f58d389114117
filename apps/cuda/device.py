"""A GPU that the harness uses: a warm process in the sandbox that launches machine code and times it.

The process runs `inside/gpu.py`, which is ours; of a candidate it gets a cubin and numbers. An error on the device is
sticky, so after any fault the process is ended and a fresh one takes its place.
"""

from __future__ import annotations

import base64
import ctypes
import glob
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from apps.cuda.emulator import Emulated, Job, number_bits
from apps.cuda.example import CudaExample
from apps.cuda.oracle import DEFAULT_TOLERANCE, bundled, site_packages
from apps.cuda.plan import Resolved, Signature, Spec, output_names
from apps.cuda.timing import BELIEVED, TimingOptions, believable, lower_bound, summary
from apps.cuda.verdict import Timing, Trial
from core.errors import BackendUnavailable, SandboxError
from core.execution import Policy, Sandbox, Worker

MOST_BESIDE = 4


@dataclass(frozen=True)
class Full:
    """A reference at full size on the device: what kernels may be given, constants that were made smaller, FLOP."""

    signature: Signature
    sizes: Mapping[str, int]
    flops: float = 0.0


@dataclass(frozen=True)
class MeasuredKernel:
    """A status, the time of the candidate, those of the baselines, the trials at full size, and remarks."""

    status: Any
    detail: str = ""
    timing: Timing | None = None
    baselines: dict[str, Timing] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    flags: tuple[str, ...] = ()


class Device:
    """One GPU; calls take turns. Use `find`."""

    def __init__(self, level: str, seconds: float) -> None:
        self.level, self.seconds = level, seconds
        self._worker: Worker | None = None
        self._lock = threading.RLock()
        self._beside, self._left = 0, threading.Condition()
        self._room = threading.BoundedSemaphore(MOST_BESIDE)
        self._limits: dict[str, Any] | None = None
        self._prepared: tuple[Any, Full | str] = (None, "")
        self.facts: dict[str, Any] = self._call("facts")

    @classmethod
    def find(cls, level: str = "strict", seconds: float = 300.0, required: bool = False) -> Self | None:
        """The GPU of this machine, or None.

        Raises:
            BackendUnavailable: `required` and none is there, or the sandbox of that level hides it.
        """
        count = gpus()
        if count == 0:
            if required:
                raise BackendUnavailable("no NVIDIA GPU on this machine", hint='gpu: "none" checks in the emulator')
            return None
        return cls(level, seconds)

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def arch(self) -> str:
        return str(self.facts["arch"])

    @property
    def described(self) -> str:
        """The device in one line."""
        known = self.facts
        return (
            f"{known['name']} ({known['arch']}): {known['sms']} SMs, {known['l2_bytes'] >> 20} MiB L2, "
            f"{known['memory'] >> 30} GiB; driver {known['driver']}, torch {known['torch']}, "
            f"TF32 products {'on' if known['tf32'] else 'off'}, in cuDNN {'on' if known['cudnn_tf32'] else 'off'}"
        )

    @property
    def limits(self) -> dict[str, Any]:
        """Measured copy bandwidth and matmul rates, with the facts."""
        with self._lock:
            if self._limits is None:
                self._limits = {**self.facts, **self._call("limits")}
            return self._limits

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the device alone: nobody prepares another reference in between, and nothing runs beside it."""
        with self._lock:
            with self._left:
                self._left.wait_for(lambda: self._beside == 0)
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A program of its own on the device, a few at a time, while nobody has a turn."""
        with self._room:
            with self._lock, self._left:
                self._beside += 1
            try:
                yield
            finally:
                with self._left:
                    self._beside -= 1
                    self._left.notify_all()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._prepared = (None, "")
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    # ---- work --------------------------------------------------------------------------------------------------

    def run(self, cubin: bytes, jobs: Sequence[Job]) -> Emulated:
        """Jobs as the emulator takes them, on the device."""
        rows = [job_row(job) for job in jobs]
        try:
            reply = self._call("run_jobs", base64.b64encode(cubin).decode(), rows)
        except TimeoutError:
            return Emulated("timeout", detail=f"not done within {self.seconds:g} s")
        except DeviceLost as error:
            return Emulated("fault", detail=str(error))
        outputs = tuple(
            {name: base64.b64decode(data) for name, data in zip(job.signature.outputs, given)}
            for job, given in zip(jobs, reply["outputs"])
        )
        unwritten = tuple({name: 0 for name in job.signature.outputs} for job, _ in zip(jobs, outputs))
        if reply["lost"]:
            self.close()
        return Emulated(reply["status"], outputs, unwritten, reply["detail"])

    def prepare(self, example: CudaExample, seed: int, limit: int) -> Full | str:
        """The reference at full size, or why it fails; what was prepared last is still there."""
        key = (example.key, seed, limit)
        with self._lock:
            if self._prepared[0] != key:
                made = self._prepare(example, seed, limit)
                if self._worker is None:  # it ended over this one, and may not over the next try
                    return made
                self._prepared = (key, made)
            return self._prepared[1]

    def _prepare(self, example: CudaExample, seed: int, limit: int) -> Full | str:
        try:
            reply = self._call("prepare", example.reference, example.sizes, seed, limit)
        except (TimeoutError, DeviceLost) as error:
            return str(error) or "the reference does not end"
        if "error" in reply:
            return f"{reply['where']} of the reference: {reply['error']}"
        inputs = {name: Spec(dtype, tuple(shape)) for name, (dtype, shape) in reply["inputs"].items()}
        names = output_names(len(reply["outputs"]))
        outputs = {name: Spec(dtype, tuple(shape)) for name, (dtype, shape) in zip(names, reply["outputs"])}
        return Full(Signature(inputs, outputs, reply["numbers"]), reply["sizes"], reply["flops"])

    def measure(self, cubin: bytes, resolved: Resolved, full: Full, asked: float | None,
                options: TimingOptions) -> MeasuredKernel:  # fmt: skip
        """Right at full size, and how fast; on what `prepare` made last."""
        outputs = full.signature.outputs
        tolerances = [
            [
                asked if asked is not None and s.dtype in DEFAULT_TOLERANCE else DEFAULT_TOLERANCE.get(s.dtype, 0.0),
                s.dtype,
            ]
            for s in outputs.values()
        ]
        buffers, launches = layout(resolved, full.signature)
        code = base64.b64encode(cubin).decode()
        try:
            limits = self.limits
            reply = self._call("measure", code, buffers, launches, tolerances, asdict(options))
        except TimeoutError:
            return MeasuredKernel("timeout", f"not done within {self.seconds:g} s at full size")
        except DeviceLost as error:
            return MeasuredKernel("fault", f"at full size: {error}")
        if "fault" in reply:
            self.close()
            return MeasuredKernel("fault", f"at full size: {reply['fault']}")
        shapes = ", ".join(f"{n} {list(s.shape)}" for n, s in full.signature.inputs.items())
        trials = tuple(Trial(c["passed"], c["relative"], worst=c["worst"], shapes=shapes) for c in reply["checks"])
        problem = next((c["problem"] for c in reply["checks"] if c["problem"]), "")
        if problem:
            return MeasuredKernel("fault", f"at full size: {problem}", trials=trials)
        wrong = next((c for c in reply["checks"] if not c["passed"]), None)
        if wrong is not None:
            worst = wrong["worst"]
            when = "after it was timed" if "samples" in reply else "at full size"
            detail = f"{when}: element {worst['index']} is {worst['got']:.6g}, expected {worst['expected']:.6g}"
            return MeasuredKernel("mismatch", detail, trials=trials)
        return self._timed(reply, full, trials, options, limits)

    @staticmethod
    def _timed(
        reply: Mapping[str, Any], full: Full, trials: tuple[Trial, ...], options: TimingOptions,
        limits: Mapping[str, Any],
    ) -> MeasuredKernel:  # fmt: skip
        given = full.signature.inputs.values()
        indices = [s for s in given if s.dtype.startswith("int")]  # what they choose from need not be read whole
        outputs = sum(s.bytes for s in full.signature.outputs.values())
        kind = next(iter(full.signature.outputs.values())).dtype
        bound = lower_bound(sum(s.bytes for s in indices or given), outputs, full.flops, limits, kind)
        baselines = {
            name: summary(samples, resamples=options.resamples)
            for name, samples in reply["samples"].items()
            if name != "candidate"
        }
        if any(base.median < BELIEVED * bound for base in baselines.values()):
            bound = 0.0  # PyTorch does without some of what was counted
        timing = summary(reply["samples"]["candidate"], warm=[reply["warm"]], bound=bound, resamples=options.resamples)
        status, detail = believable(timing, bound, reply["event_ms"], reply["wall_ms"])
        return MeasuredKernel(status, detail, timing, baselines, trials)

    def bench(
        self, cubin: bytes, resolved: Resolved, full: Full, options: TimingOptions, peer: bool = True
    ) -> dict[str, Any]:
        """Samples of our timer, twice, and the median of `triton.testing.do_bench` between."""
        buffers, launches = layout(resolved, full.signature)
        return self._call("bench", base64.b64encode(cubin).decode(), buffers, launches, asdict(options), peer)

    def _call(self, function: str, *arguments: Any) -> Any:
        with self._lock:
            if self._worker is None:
                self._worker = gpu_worker(self.level, self.seconds)
            answer = self._worker.call(function, *arguments)
            if answer.status == "ok":
                return answer.value
            self.close()
            if answer.status == "timeout":
                raise TimeoutError
            raise DeviceLost(f"{answer.status}: {answer.error}"[:300])


class DeviceLost(Exception):
    """The process at the device ended; a fresh one is started by the next call."""


def gpus() -> int:
    """NVIDIA GPUs that the driver shows."""
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if lib.cuInit(0) or lib.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def gpu_worker(level: str, seconds: float) -> Worker:
    """A process inside the sandbox that sees the GPU. Raises `BackendUnavailable` where the sandbox hides it."""
    paths = site_packages()
    policy = gpu_policy(level, seconds, paths)
    exports = "bench, facts, limits, measure, prepare, run_jobs"
    source = bundled("cases", "launching", "gpu", exports=exports) + "facts()\n"
    try:
        return Worker(Sandbox.best(policy), source, timeout_s=seconds, startup_s=180, paths=paths)
    except SandboxError as error:
        raise BackendUnavailable(
            f"the GPU cannot be used at isolation level '{level}': {error.what}",
            hint=f"{error.hint or ''} No generated code runs on the host, so sandbox: weak is a choice here".strip(),
        ) from error


def gpu_policy(level: str, seconds: float, visible: Sequence[str]) -> Policy:
    """Limits of a process that uses the GPU and sees the folders `visible`."""
    devices = tuple(sorted(p for p in glob.glob("/dev/nvidia*") if not os.path.isdir(p)))
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    seen = tuple(p for p in ("/sys", "/etc/OpenCL", "/opt") if os.path.isdir(p))
    return Policy(
        wall_s=seconds, mem_mb=65536, address_space=False, max_procs=512, max_fds=4096, max_output_kb=96 << 10,
        tmp_mb=2048, fsize_mb=1024, ro=(*visible, *seen), devices=devices, env=env, level=level,  # type: ignore[arg-type]
    )  # fmt: skip


def layout(resolved: Resolved, signature: Signature) -> tuple[list, list]:
    """Buffers as [kind, bytes, zero] and launches with places instead of names."""
    buffers: list[list[int]] = []
    places: dict[str, int] = {}
    for kind, specs in enumerate((signature.inputs, signature.outputs, resolved.scratch)):
        for name, spec in specs.items():
            places[name] = len(buffers)
            buffers.append([kind, spec.bytes, int(name in resolved.zero)])
    launches = []
    for one in resolved.launches:
        args = [["t", places[v]] if kind == "tensor" else ["v", number_bits(kind, v)] for kind, v in one.args]
        launches.append([one.kernel, list(one.grid), list(one.block), one.shared, args])
    return buffers, launches


def job_row(job: Job) -> dict[str, Any]:
    """A job with its buffers laid out, as the processes at the device read it."""
    buffers, launches = layout(job.resolved, job.signature)
    given = [base64.b64encode(data).decode() for data in job.inputs]
    rows = [[*row, given[i] if row[0] == 0 else None] for i, row in enumerate(buffers)]
    return {"buffers": rows, "launches": launches, "reverse": job.reverse}
