"""Kernels on a GPU, for the harness: launched through the driver, checked to the byte around their buffers, and timed.

This file runs inside the sandbox, in a process of its own, with torch for memory and baselines. Of a candidate it gets
machine code and numbers; nothing of a candidate runs on the host. The expected output of a full-size run is copied to
the host before the candidate starts, and its place on the device is overwritten.
"""

from __future__ import annotations

import base64
import copy
import ctypes
import time

import torch
from cases import FLOATS, TOO_LARGE, Made, ReferenceFailed, constants, halved, used_by
from launching import MARGIN, POISON, Buffer, DeviceError, Prepared, driver, facts, limits

# ---- small cases -------------------------------------------------------------------------------------------------


def run_jobs(cubin: str, jobs: list) -> dict:
    """Outputs of jobs, each on fresh memory and a freshly loaded module; stops at the first that goes wrong.

    A job is {"buffers": [[kind, bytes, zero, data or null]], "launches": […], "reverse"}; kind 0 is an input, 1 an
    output, 2 scratch.
    """
    code, found = base64.b64decode(cubin), []
    for number, job in enumerate(jobs):
        try:
            found.append(_one_job(code, job))
        except (DeviceError, RuntimeError) as error:
            said = f"job {number}: {error}"[:300]
            return {"status": "fault", "outputs": found, "detail": said, "lost": _lost()}
    return {"status": "ok", "outputs": found, "detail": "", "lost": False}


def _lost() -> bool:
    """Whether the device's error is one that every later call would repeat."""
    try:
        torch.cuda.synchronize()
        return False
    except RuntimeError:
        return True


def _one_job(code: bytes, job: dict) -> list[str]:
    order = list(enumerate(job["buffers"]))
    places: dict[int, Buffer] = {}
    for index, (_, size, _, _) in reversed(order) if job["reverse"] else order:
        places[index] = Buffer(size, MARGIN if job["reverse"] else 0)
    given = {}
    for index, (kind, _, zero, data) in order:
        if kind == 0:
            given[index] = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.uint8)
            places[index].bytes.copy_(given[index])
        else:
            places[index].bytes.fill_(0 if zero else POISON)
    module = driver().load(code)
    try:
        pointers = [places[i].pointer for i in range(len(order))]
        Prepared(driver(), module, job["launches"], pointers).queue(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        for index, (kind, _, _, _) in order:
            if not places[index].intact():
                raise DeviceError(f"writes outside buffer {index}")
            if kind == 0 and not torch.equal(places[index].bytes.cpu(), given[index]):
                raise DeviceError(f"writes into input {index}")
        return [base64.b64encode(places[i].bytes.cpu().numpy().tobytes()).decode() for i, b in order if b[0] == 1]
    finally:
        driver().unload(module)


# ---- full size ---------------------------------------------------------------------------------------------------

_FULL: dict = {}
ROUNDINGS = 4  # one order of summation may round by several times another's


def prepare(source: str, sizes: dict, seed: int, limit: int) -> dict:
    """The reference at full size: what kernels may be given. Beyond `limit` elements it is made smaller."""
    _FULL.clear()
    torch.cuda.empty_cache()
    try:
        known = {**constants(source), **sizes}
        inner = used_by(source, "get_inputs")
        free = {n for n in known if n.partition(".")[0] in inner and known[n] > 8}
        here = _sized(source, known, free, limit)
        here = {n: v for n, v in here.items() if v != constants(source).get(n)}
        made = [Made(source, here, seed, device="cuda"), Made(source, here, seed + 1, device="cuda")]
        for one in made:
            one.vary(seed)
        made[1].model = made[0].model
        made[1].weights = made[0].weights
        own = made[0].outputs(precise=False)
        expected = [_exact(one) for one in made]
        rounding = [_furthest(a, b) for a, b in zip(own, expected[0])]
    except ReferenceFailed as error:
        where = "size" if error.where == TOO_LARGE else error.where
        return {"error": str(error), "where": where, "line": error.line}
    except torch.cuda.OutOfMemoryError:
        return {
            "error": "out of device memory: give smaller sizes, or a smaller size_limit",
            "where": "size",
            "line": 0,
        }
    _FULL.update(made=made, expected=expected, rounding=rounding, flops=_flops(made[0]))
    names = {**made[0].inputs, **made[0].weights}
    types = [str(t.dtype).removeprefix("torch.") for t in own]
    reply = {
        "inputs": {n: [str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in names.items()},
        "outputs": [[kind, list(t.shape)] for kind, t in zip(types, own)], "numbers": made[0].numbers, "sizes": here,
        "flops": _FULL["flops"],
    }  # fmt: skip
    del own
    torch.cuda.empty_cache()
    return reply


def _sized(source: str, known: dict, free: set, limit: int) -> dict:
    """Sizes below the limit; as they are for a reference that cannot be tried without memory."""
    try:
        return halved(source, dict(known), free, limit, 16)
    except ReferenceFailed as error:
        if error.where == TOO_LARGE:
            raise
        return dict(known)


def _exact(made: Made) -> list:
    """The output in float64 on the host; in its own precision where the device is too small for that."""
    try:
        found = made.outputs(precise=True)
    except (ReferenceFailed, torch.cuda.OutOfMemoryError):
        torch.cuda.empty_cache()
        found = made.outputs(precise=False)
    kept = [t.cpu() for t in found]
    for tensor in found:
        tensor.zero_()
    return kept


def _furthest(own: torch.Tensor, exact: torch.Tensor) -> float:
    """How far the module in its own precision is from the exact output, at most: a long sum rounds by more."""
    apart = (own.cpu().double() - exact.double()).abs()
    return float(apart[apart.isfinite()].max()) if apart.isfinite().any() else 0.0


def _flops(made: Made) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(made.model)(*(a.clone() if isinstance(a, torch.Tensor) else a for a in made.arguments))
        return float(counter.get_total_flops())
    except Exception:
        return 0.0


def measure(cubin: str, buffers: list, launches: list, tolerances: list, options: dict) -> dict:
    """Correctness and times at full size, on two sets of inputs in turn.

    Args:
        buffers: [kind, bytes, zero] in the order of inputs, weights, outputs, scratch.
        tolerances: of each output. options: fields of `TimingOptions`.
    """
    made, expected = _FULL["made"], _FULL["expected"]
    module = driver().load(base64.b64decode(cubin))
    stream = torch.cuda.current_stream().cuda_stream
    try:
        runs = [_Run(module, buffers, launches, one) for one in made]  # before a baseline runs
        for run in runs:
            run.poison()
            run.queue(stream)
        torch.cuda.synchronize()
        checks = [run.check(want, tolerances, _FULL["rounding"]) for run, want in zip(runs, expected)]
        if not all(c["passed"] for c in checks) or any(c["problem"] for c in checks):
            return {"checks": checks}
        calls = {"candidate": lambda i: runs[i % 2].queue(stream), **_baselines(options["baselines"], made)}
        samples = _interleaved(calls, options, lambda i: runs[i % 2].poison())
        warm, event_ms, wall_ms = _batch(calls["candidate"])
        for run in runs:
            run.poison()
        calls["candidate"](0)
        calls["candidate"](1)
        torch.cuda.synchronize()
        return {
            "checks": [*checks, *(run.check(want, tolerances, _FULL["rounding"]) for run, want in zip(runs, expected))],
            "samples": samples, "warm": warm, "event_ms": event_ms, "wall_ms": wall_ms,
        }  # fmt: skip
    except (DeviceError, RuntimeError) as error:
        return {"fault": str(error)[:300]}
    finally:
        driver().unload(module)


class _Run:
    """The candidate on one set of inputs: its buffers, and its launches over them."""

    def __init__(self, module: ctypes.c_void_p, buffers: list, launches: list, made: Made) -> None:
        tensors = [*made.inputs.values(), *made.weights.values()]
        self.kinds, self.places = [b[0] for b in buffers], []
        # copies, because a reference may write into its inputs and statistics
        self.given = [_as_bytes(tensor).clone() for tensor in tensors]
        self.zero = [i for i, b in enumerate(buffers) if b[2]]
        for index, (kind, size, _) in enumerate(buffers):
            place = Buffer(size)
            if kind == 0:
                place.bytes.copy_(self.given[index])
            self.places.append(place)
        self.prepared = Prepared(driver(), module, launches, [p.pointer for p in self.places])

    def poison(self) -> None:
        """Outputs and scratch hold nothing of an earlier run."""
        for kind, place in zip(self.kinds, self.places):
            if kind != 0:
                place.bytes.fill_(POISON)

    def queue(self, stream: int) -> None:
        """Clearing what the plan wants cleared is the candidate's work, and is timed."""
        for index in self.zero:
            self.places[index].bytes.zero_()
        self.prepared.queue(stream)

    def check(self, expected: list, tolerances: list, rounding: list) -> dict:
        """Outputs within their tolerances, inputs and canaries as they were.

        Full sizes sum over more terms than a fixed tolerance knows of: `ROUNDINGS` times what the module itself is
        off by (`rounding`, for each output) is allowed on top.
        """
        problem = ""
        for index, (kind, place) in enumerate(zip(self.kinds, self.places)):
            if not place.intact():
                problem = problem or f"writes outside buffer {index}"
            if kind == 0 and not torch.equal(place.bytes, self.given[index]):
                problem = problem or f"writes into input {index}"
        outputs = [p for k, p in zip(self.kinds, self.places) if k == 1]
        found: dict = {"passed": True, "problem": problem, "relative": 0.0, "worst": None}
        for number, (place, want, (tolerance, dtype), off) in enumerate(zip(outputs, expected, tolerances, rounding)):
            got = place.bytes.view(getattr(torch, dtype)).view(want.shape).double()
            exact = want.to("cuda").double()
            same = (got == exact) | (got.isnan() & exact.isnan())
            finite = got.isfinite() & exact.isfinite()
            distance = torch.where(finite, (got - exact).abs(), torch.where(same, 0.0, torch.inf))
            allowed = tolerance + ROUNDINGS * off + tolerance * torch.where(finite, exact.abs(), 0.0)
            over = torch.where(same, -1.0, distance - allowed)
            if over.numel() == 0:
                continue
            worst = int(over.argmax())
            if float(over.flatten()[worst]) > 0:
                found["passed"] = False
                place_ = [int(i) for i in torch.unravel_index(torch.tensor(worst), exact.shape)]
                found["worst"] = {"output": number, "index": place_, "expected": float(exact.flatten()[worst]),
                                  "got": float(got.flatten()[worst])}  # fmt: skip
            norm = float(torch.where(finite, exact, 0.0).norm())
            apart = float(torch.where(finite, got - exact, 0.0).norm())
            found["relative"] = max(found["relative"], apart / norm if norm else apart)
            exact.zero_()
        return found


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.view(torch.uint8)


def _baselines(names: list, made: list) -> dict:
    """Callables of the reference: as it is, and compiled."""
    calls = {}
    for name in names:
        if name == "eager":
            model = made[0].model
        else:
            mode = "max-autotune-no-cudagraphs" if name == "max-autotune" else "default"
            model = torch.compile(made[0].model, mode=mode)

        def call(i: int, model=model) -> None:
            with torch.no_grad():
                model(*made[i % 2].arguments)

        calls[name] = call
    return calls


def _interleaved(calls: dict, options: dict, before) -> dict:
    """Milliseconds of each callable, run in turn with a cold L2 before every run."""
    flush = torch.empty(max(1, int(facts()["l2_bytes"] * options["flush"]) // 4), dtype=torch.int32, device="cuda")
    estimate = 0.0
    for call in calls.values():
        clock, runs = time.perf_counter(), 0
        while runs < options["warmup"] or (time.perf_counter() - clock < 0.1 and runs < 2000):
            call(runs)
            runs += 1
            if runs % 10 == 0:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        estimate += _batch(call, 5)[0] + 0.1
    repeats = max(options["repeats"], min(3000, int(options["seconds"] * 1e3 / max(estimate, 1e-3)))) + 1
    events: dict = {name: [] for name in calls}
    order = list(calls)
    for number in range(repeats):
        for name in order if number % 2 == 0 else reversed(order):
            if name == "candidate":
                before(number)
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            calls[name](number)
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) for a, b in pairs] for name, pairs in events.items()}


def _batch(call, runs: int = 0) -> tuple[float, float, float]:
    """(milliseconds a run with a warm L2, of the whole batch by events, of the whole batch on the wall)."""
    if not runs:
        once = _batch(call, 5)[0]
        runs = max(20, min(2000, int(20.0 / max(once, 1e-3))))
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    clock = time.perf_counter()
    start.record()
    for number in range(runs):
        call(number)
    end.record()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - clock) * 1e3
    total = start.elapsed_time(end)
    return total / runs, total, wall


def bench(cubin: str, buffers: list, launches: list, options: dict, peer: bool = True) -> dict:
    """Our median of the candidate beside `triton.testing.do_bench` of the same launches, on the prepared reference."""
    made = _FULL["made"]
    module = driver().load(base64.b64decode(cubin))
    stream = torch.cuda.current_stream().cuda_stream
    try:
        run = _Run(module, buffers, launches, made[0])
        first = _interleaved({"candidate": lambda i: run.queue(stream)}, options, lambda i: None)["candidate"]
        theirs = None
        if peer:
            from triton.testing import do_bench

            theirs = float(do_bench(lambda: run.queue(stream), warmup=100, rep=500, return_mode="median"))
        second = _interleaved({"candidate": lambda i: run.queue(stream)}, options, lambda i: None)["candidate"]
        return {"first": first, "second": second, "do_bench": theirs}
    finally:
        driver().unload(module)


__all__ = ["FLOATS", "bench", "facts", "limits", "measure", "prepare", "run_jobs"]
