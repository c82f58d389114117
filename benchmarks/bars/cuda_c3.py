"""Our times against `triton.testing.do_bench` of the same launches on the same GPU.

Ten kernels of at least 50 µs at their full size. Ours is taken twice, before and after the peer, which gives the spread
of repeats. Both clear the L2 cache before every run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import kernels
from benchmarks.bar import Bar, Measured, Setting, Unavailable

MOST_OFF, MOST_SPREAD, SHORTEST = 0.03, 0.02, 0.05
KERNELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unary", {"op": "gelu", "walk": "vector", "block": 256}),
    ("unary", {"op": "relu", "walk": "one", "block": 256}),
    ("binary", {"op": "add", "block": 256, "each": 2}),
    ("bias", {"op": "relu", "block": 256}),
    ("softmax", {"log": False, "way": "warp", "block": 256}),
    ("norm", {"kind": "layer", "way": "warp", "block": 256}),
    ("transpose", {"scale": "1.0", "way": "tiled", "tile": 32}),
    ("scan", {"way": "shared", "block": 128}),
    ("matvec", {"way": "warp", "block": 256}),
    ("matmul", {"fused": "none", "way": "tiled", "tile": 16}),
)


def measure(setting: Setting) -> Measured:
    """The largest relative difference of medians."""
    from apps.cuda.compiling import KernelCompiler
    from apps.cuda.device import Device, DeviceLost
    from apps.cuda.plan import parse_plan, resolve
    from apps.cuda.source import extract
    from apps.cuda.source import kernels as kernels_in
    from apps.cuda.taskgen import make
    from apps.cuda.timing import TimingOptions, summary

    level, lacking = kernels.isolation()
    device = Device.find(level)
    if device is None:
        raise Unavailable("no GPU")
    compiler, options = KernelCompiler(level), TimingOptions(seconds=0.5)
    rows, short = {}, []
    try:
        for name, params in KERNELS[: 3 if setting.quick else None]:
            example = make(name, params)
            code, text = extract(example.solution or "")
            full = device.prepare(example, 1, 1 << 28)
            if isinstance(full, str):
                raise Unavailable(f"{name}: {full}")
            made = compiler.compile(code, device.arch)
            if made.cubin is None:
                raise Unavailable(f"{name}: {made.diagnostics[0]}")
            found = device.bench(made.cubin, resolve(parse_plan(text), kernels_in(code), full.signature), full, options)
            first, second = summary(found["first"]), summary(found["second"])
            ours = float(np.median([first.median, second.median]))
            rows[f"{name} {params}"] = {
                "ms": round(ours, 5), "do_bench ms": found["do_bench"], "off": ours / found["do_bench"] - 1,
                "spread": abs(first.median - second.median) / first.median, "interval": [first.low, first.high],
            }  # fmt: skip
            if ours < SHORTEST:
                short.append(name)
    except (DeviceLost, TimeoutError) as error:
        raise Unavailable(f"the process at the device ended: {error}") from error
    finally:
        device.close()
    off = max(abs(r["off"]) for r in rows.values())
    spread = max(r["spread"] for r in rows.values())
    return Measured(
        off,
        off <= MOST_OFF and spread <= MOST_SPREAD and not short,
        baseline="triton.testing.do_bench, median",
        details={"kernels": rows, "largest spread": spread, "shorter than 50 µs": short, "isolation": level,
                 "stricter levels lack": lacking, "gpu": device.described},
    )  # fmt: skip


BAR = Bar(
    "cuda.C3", "times against do_bench", "largest relative difference",
    "≤ 3 % on 10 kernels of at least 50 µs; repeats within 2 %", "gpu", 3, measure,
)  # fmt: skip
