"""KernelBench answers: `ModelNew` on given inputs, and its times, in a process that never holds the expected output.

This file runs inside the sandbox. The timer's functions are bound before the candidate's module is run. On a machine
without a GPU the module runs on the CPU, where that is possible (Triton through its interpreter).
"""

from __future__ import annotations

import base64
import time

import torch
from cases import FLOATS, Made, packed

_EVENT, _SYNC, _CLOCK = torch.cuda.Event, torch.cuda.synchronize, time.perf_counter


def _place() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _module(code: str, source: str, sizes: dict, seed: int):
    """A `ModelNew` with the reference's arguments and, where the names agree, its weights."""
    made = Made(source, sizes, seed)
    names: dict = {"__name__": "candidate"}
    with open("candidate.py", "w", encoding="utf-8") as handle:  # Triton reads its kernels' source
        handle.write(code)
    exec(compile(code, "candidate.py", "exec"), names)
    torch.manual_seed(seed)
    arguments, keywords = made.init
    model = names["ModelNew"](*arguments, **keywords)
    state = made.model.state_dict()
    if set(model.state_dict()) == set(state):
        model.load_state_dict(state)
    return made, model.to(_place())


def run_module(code: str, source: str, cases: list) -> dict:
    """Outputs of each case, twice with other addresses; inputs are compared before and after.

    A case is {"inputs": {name: [dtype, shape, data]}, "weights", "sizes", "seed", "order"}.
    """
    outputs: list = []
    for number, case in enumerate(cases):
        try:
            made, model = _module(code, source, case["sizes"], case["seed"])
            with torch.no_grad():
                for name, tensor in made.weights.items():
                    tensor.copy_(_tensor(*case["weights"][name]))
                if set(model.state_dict()) == set(made.model.state_dict()):
                    model.load_state_dict(made.model.state_dict())
            pads = [torch.full((4097 * (number + 1),), float("nan"), device=_place()) for _ in range(3)]
            given = {n: _tensor(*row).to(_place()) for n, row in case["inputs"].items()}
            before = {n: t.clone() for n, t in given.items()}
            arguments = _arguments(made, given)
            del pads
            with torch.no_grad():
                first = _flat(model(*arguments))
                second = _flat(model(*_arguments(made, {n: t.clone() for n, t in given.items()})))
            changed = [n for n in given if not torch.equal(_bits(given[n]), _bits(before[n]))]
            if changed:
                return {"status": "fault", "outputs": outputs, "detail": f"input {changed[0]} was changed in place"}
            if any(type(t) is not torch.Tensor for t in first):
                return {"status": "fault", "outputs": outputs, "detail": "the output is no plain tensor"}
            if any(a.shape != b.shape or not torch.allclose(a.double(), b.double(), 1e-3, 1e-3, equal_nan=True)
                   for a, b in zip(first, second)):  # fmt: skip
                return {"status": "fault", "outputs": outputs, "detail": "two calls on equal inputs differ"}
            if any(a.data_ptr() == b.data_ptr() and a.numel() for a, b in zip(first, second)):
                return {"status": "fault", "outputs": outputs, "detail": "two calls return the same memory"}
            outputs.append([packed(t.float() if t.dtype == torch.bfloat16 else t) for t in first])
        except Exception as error:
            return {"status": "fault", "outputs": outputs, "detail": f"{type(error).__name__}: {error}"[:300]}
    return {"status": "ok", "outputs": outputs, "detail": ""}


def time_module(code: str, source: str, sizes: dict, seed: int, repeats: int, flush_bytes: int) -> dict:
    """Milliseconds of `ModelNew` and the reference in turn, cold; `ModelNew` runs before there is an output to find."""
    made, model = _module(code, source, sizes, seed)
    made.model.to("cuda")
    arguments = [a.to("cuda") if isinstance(a, torch.Tensor) else a for a in made.arguments]
    with torch.no_grad():
        mine = [t.double().cpu() for t in _flat(model(*arguments))]
        _SYNC()
        theirs = [t.double().cpu() for t in _flat(made.model(*arguments))]
    off = max(float((a - b).norm() / b.norm().clamp_min(1e-300)) for a, b in zip(mine, theirs))
    flush = torch.empty(flush_bytes // 4, dtype=torch.int32, device="cuda")
    events: dict = {"candidate": [], "eager": []}
    with torch.no_grad():
        for number in range(repeats + 10):
            for name, call in (("candidate", model), ("eager", made.model)):
                flush.zero_()
                _SYNC()  # joins every stream, before and after
                start, end = _EVENT(enable_timing=True), _EVENT(enable_timing=True)
                start.record()
                call(*arguments)
                _SYNC()
                end.record()
                _SYNC()
                if number >= 10:
                    events[name].append(start.elapsed_time(end))
        clock = _CLOCK()
        start, end = _EVENT(enable_timing=True), _EVENT(enable_timing=True)
        start.record()
        for _ in range(50):
            model(*arguments)
        end.record()
        _SYNC()
        wall = (_CLOCK() - clock) * 1e3
    return {"samples": events, "event_ms": start.elapsed_time(end), "wall_ms": wall, "relative": off}


def _arguments(made: Made, given: dict) -> list:
    names = iter(given)
    return [given[next(names)] if isinstance(a, torch.Tensor) else a for a in made.arguments]


def _flat(out) -> list:
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def _tensor(dtype: str, shape: list, data: str) -> torch.Tensor:
    kind = getattr(torch, dtype)
    plain = torch.frombuffer(bytearray(base64.b64decode(data)) or bytearray(8), dtype=kind)
    total = 1
    for size in shape:
        total *= size
    return plain[:total].reshape(shape).clone()


__all__ = ["FLOATS", "run_module", "time_module"]
