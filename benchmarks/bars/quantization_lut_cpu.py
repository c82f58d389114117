"""Table lookup on one CPU thread (Wei et al. 2024, T-MAC) against torch's own int4 kernel, 4096 × 4096, one row.

Weights alternate between copies that do not fit the last cache level together. Figures are of one process and one
thread; all contestants run in it, in turns.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

SIZE, GROUP = 4096, 128
AGAINST_INT4, W2_SHARE, W1_SHARE, ERROR = 1.5, 0.75, 0.55, 0.01


def measure(setting: Setting) -> Measured:
    import torch

    from core.quantization import QuantizedLinear, parse
    from core.quantization.kernels.cpu import native

    if native.library() is None:
        raise Unavailable("no C++ compiler for the CPU kernels")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        copies = 3 if setting.quick else 8
        x = torch.randn(1, SIZE)
        linear = torch.nn.Linear(SIZE, SIZE, bias=False)
        runs: dict[str, Sequence[Callable[[], Any]]] = {}
        errors, gigabytes = {}, {}
        for bits in (4, 3, 2, 1):
            spec = replace(parse(f"rtn:{bits}" if bits > 1 else "bipolar:1:g128"), act="none", symmetric=True)
            layer = QuantizedLinear.from_linear(linear, spec)
            wanted = layer(x)
            layer.prepare("lut")
            errors[f"W{bits}"] = float((layer(x) - wanted).norm() / wanted.norm())
            gigabytes[f"W{bits}"] = sum(t.numel() * t.element_size() for t in layer._layout) / 1e9
            runs[f"W{bits}"] = [_bound(layer, x)] + [_bound(_copy(layer), x) for _ in range(copies - 1)]
        runs["torch int4"] = [_int4(torch.randn(1, SIZE).bfloat16(), seed) for seed in range(copies)]
        half = [torch.randn(SIZE, SIZE).bfloat16() for _ in range(3)]
        runs["bf16"] = [lambda w=w: torch.nn.functional.linear(x.bfloat16(), w) for w in half]
        times = _times(runs, 10 if setting.quick else 60)
    finally:
        torch.set_num_threads(threads)
    speed = times["torch int4"] / times["W4"]
    shares = {"W2 of W4": times["W2"] / times["W4"], "W1 of W4": times["W1"] / times["W4"]}
    passed = (
        speed >= AGAINST_INT4
        and shares["W2 of W4"] <= W2_SHARE
        and shares["W1 of W4"] <= W1_SHARE
        and max(errors.values()) <= ERROR
    )
    return Measured(
        round(speed, 3),
        passed,
        baseline={"torch int4 op, ms": round(times["torch int4"], 4), "bf16, ms": round(times["bf16"], 4)},
        chance="1: as fast as torch's int4 kernel",
        details={
            "ms": {name: round(value, 4) for name, value in times.items()},
            **{name: round(share, 3) for name, share in shares.items()},
            "bf16 / W4": round(times["bf16"] / times["W4"], 2),
            "GB/s": {name: round(size / times[name] * 1e3, 1) for name, size in gigabytes.items()},
            "relative error": {name: round(error, 5) for name, error in errors.items()},
            "cpu": _cpu(),
        },
    )


def _bound(layer: Any, x: Any) -> Callable[[], Any]:
    return lambda: layer(x)


def _copy(layer: Any) -> Any:
    import copy

    return copy.deepcopy(layer)


def _int4(x: Any, seed: int) -> Callable[[], Any]:
    import torch

    codes = torch.randint(0, 16, (SIZE, SIZE), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(SIZE // GROUP, SIZE, 2).bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)


def _times(runs: dict[str, Sequence[Callable[[], Any]]], repeats: int) -> dict[str, float]:
    """Median ms of one call, each contestant over its copies in turn, contestants taking turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    turns = {name: itertools.cycle(calls) for name, calls in runs.items()}
    for _ in range(repeats):
        for name in runs:
            for _ in range(4):
                call = next(turns[name])
                start = time.perf_counter()
                call()
                found[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[4:]) for name, values in found.items()}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


BAR = Bar(
    "quantization.lut_cpu",
    "W4 table lookup against torch's int4 CPU kernel, 4096², one row, one thread",
    "times as fast",
    f"≥ {AGAINST_INT4:g}; W2 ≤ {W2_SHARE:g} and W1 ≤ {W1_SHARE:g} of W4's time; error ≤ {ERROR:g}",
    "cpu",
    1,
    measure,
)
