"""4-bit weights in groups of 128 against bf16 and torch's own int4 operator, on the shapes of large models.

All contestants run in one process as replayed CUDA graphs; weights rotate among copies that do not fit the second cache
level together. Correctness is checked first, on fresh random inputs, against the product with the decoded matrix in
fp32. Bytes moved and the share of the measured copy bandwidth stand beside every time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (28672, 8192))
LARGE = SHAPES[1:]
ONE_BF16, ONE_INT4, SIXTEEN_BF16, ERROR = 2.2, 1.2, 1.5, 0.01


def measure(setting: Setting) -> Measured:
    import torch

    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device")
    errors = check_kernels()
    rows = [one_shape(n, k, m, setting.quick) for n, k in SHAPES for m in (1, 8, 16)]
    large = {f"{r['N']}x{r['K']}": r for r in rows if (r["N"], r["K"]) in LARGE and r["M"] == 1}
    sixteen = [r for r in rows if r["M"] == 16]
    worst = min(r["bf16 / ours"] for r in large.values())
    passed = (
        worst >= ONE_BF16
        and min(r["int4 op / ours"] for r in large.values()) >= ONE_INT4
        and min(r["bf16 / ours"] for r in sixteen) >= SIXTEEN_BF16
        and max(errors.values()) <= ERROR
    )
    return Measured(
        round(worst, 3),
        passed,
        baseline={
            "torch int4 op / ours at M = 1": {name: r["int4 op / ours"] for name, r in large.items()},
            "bf16 / ours at M = 16": {f"{r['N']}x{r['K']}": r["bf16 / ours"] for r in sixteen},
        },
        chance="1: as fast as bf16; 3.76 is the ratio of bytes",
        details={
            "rows": rows,
            "relative error": errors,
            "copy TB/s": round(bandwidth(), 2),
            "plain call us": plain(),
            "tilus": "unavailable: a language for such kernels, it ships none of 4 bits",
            "gpu": torch.cuda.get_device_name(),
        },
    )


def make_layer(n: int, k: int, spec: str, kernel: str | None = "w4") -> Any:
    import torch

    from core.quantization import QuantizedLinear, parse

    linear = torch.nn.Linear(k, n, bias=False, device="cuda", dtype=torch.bfloat16)
    layer = QuantizedLinear.from_linear(linear, parse(spec))
    return layer if kernel is None else layer.prepare(kernel)


def check_kernels() -> dict[str, float]:
    """Largest relative error of each kernel against fp32 products with the matrix decoded on the CPU."""
    import torch

    found: dict[str, float] = {}
    kinds = ("rtn:4", "rtn:4:sym", "rtn:3", "rtn:4:row", "rtn:4:g256", "rtn:4:g64", "nf4", "bitmod:3", "bitmod:4",
             "squeezellm:dense", "squeezellm", "trilm")  # fmt: skip
    for spec in kinds:
        for n, k in ((4096, 2048), (48, 1280)):
            layer = make_layer(n, k, spec, None).cpu()
            dense = layer.dense_weight().cuda()
            layer = layer.cuda().prepare("w4")
            for dtype in (torch.bfloat16, torch.float16):
                for m in (1, 3, 8, 9, 16, 33, 64, 100):
                    x = torch.randn(m, k, device="cuda").to(dtype)
                    wanted = x.float() @ dense.t()
                    error = float((layer(x).float() - wanted).norm() / wanted.norm())
                    found[f"w4 {spec}"] = max(found.get(f"w4 {spec}", 0.0), error)
    for spec in ("llm_int8", "bitlinear", "rtn:4:row:a8"):
        layer = make_layer(264, 1280, spec, None)
        for m in (1, 17, 64, 100):
            x = torch.randn(m, 1280, device="cuda").bfloat16()
            x[:, 5] *= 30
            wanted = layer.prepare("reference")(x).float()
            error = float((layer.prepare("w8a8")(x).float() - wanted).norm() / wanted.norm())
            found[f"w8a8 {spec}"] = max(found.get(f"w8a8 {spec}", 0.0), error)
    for spec in ("rtn:4", "nf4", "bitmod:3", "rtn:3:g64", "bipolar:2", "llm_int8"):
        layer = make_layer(256, 1024, spec, None)
        ours, wanted = layer.dense_weight(), layer.cpu().dense_weight().cuda()
        found[f"decode {spec}"] = float((ours - wanted).norm() / wanted.norm())
    return {name: round(error, 6) for name, error in found.items()}


def one_shape(n: int, k: int, m: int, quick: bool) -> dict[str, Any]:
    """Times of ours, torch's int4 operator, gemlite and the vendor's bf16 product, each in its own graph."""
    import torch

    from core.quantization.kernels.cuda.w4_a16 import launch

    packed = n * k * (0.5 + 4 / 128)
    copies = max(2, int(2e8 / packed) + 1)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    first = make_layer(n, k, "rtn:4")
    layouts = [first._layout] + [tuple(t.clone() for t in first._layout) for _ in range(copies - 1)]
    ours = graph_ms([lambda a=a: launch(x, *a) for a in layouts], quick)
    del layouts
    codes = torch.randint(0, 255, (n, k // 2), dtype=torch.uint8, device="cuda")
    operand = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scale = torch.rand(k // 128, n, 2, device="cuda", dtype=torch.bfloat16)
    theirs = [operand] + [operand.clone() for _ in range(copies - 1)]
    peer = graph_ms([lambda w=w: torch.ops.aten._weight_int4pack_mm(x, w, 128, scale) for w in theirs], quick)
    dense = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(max(2, int(2e8 / (2 * n * k)) + 1))]
    bf16 = graph_ms([lambda w=w: torch.nn.functional.linear(x, w) for w in dense], quick)
    third = gemlite(n, k, x, copies, quick) if m in (1, 16) else "not measured"
    return {
        "N": n, "K": k, "M": m, "ours us": round(1e3 * ours, 2), "int4 op us": round(1e3 * peer, 2),
        "gemlite us": third, "bf16 us": round(1e3 * bf16, 2), "bf16 / ours": round(bf16 / ours, 3),
        "int4 op / ours": round(peer / ours, 3), "MB": round(packed / 1e6, 2), "TB/s": round(packed / ours / 1e9, 3),
    }  # fmt: skip


def gemlite(n: int, k: int, x: Any, copies: int, quick: bool) -> float | str:
    """µs of the Triton library of that name on the same shape, or why it has none."""
    import torch

    try:
        from gemlite.helper import A16W4_HQQ_INT

        made = []
        for _ in range(copies):
            codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
            scale = torch.rand(n, k // 128, device="cuda", dtype=torch.bfloat16)
            made.append(A16W4_HQQ_INT(device="cuda:0", dtype=torch.bfloat16).from_weights(codes, scale, scale * 8))
        return round(1e3 * graph_ms([lambda part=part: part(x) for part in made], quick), 2)
    except Exception as error:  # a peer that cannot start is a row of the table, not a failure
        return f"unavailable: {type(error).__name__} {str(error)[:120]}"


def graph_ms(calls: list[Callable[[], Any]], quick: bool) -> float:
    """Median ms of one call in replays of a graph that holds all of them several times."""
    import torch

    torch.cuda.synchronize()  # what the calls read is made on another stream
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph, repeats = torch.cuda.CUDAGraph(), max(1, 20 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(5 if quick else 15):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / (repeats * len(calls)))
    return statistics.median(times)


def plain() -> dict[str, float]:
    """µs a call from Python without a graph, 4096 × 4096 and one row: what the host adds."""
    import torch

    layer = make_layer(4096, 4096, "rtn:4")
    dense = layer.dense_weight(torch.bfloat16)
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    found = {}
    with torch.no_grad():
        for name, call in (("ours", lambda: layer(x)), ("bf16", lambda: torch.nn.functional.linear(x, dense))):
            for _ in range(20):
                call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(200):
                call()
            torch.cuda.synchronize()
            found[name] = round((time.perf_counter() - start) * 5e3, 1)
    return found


def bandwidth() -> float:
    """TB/s of a device copy, bytes read and written."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / graph_ms([lambda: target.copy_(source)], True) / 1e9


BAR = Bar(
    "quantization.w4a16",
    "W4A16 in groups of 128, one row, worst of three large shapes, against bf16",
    "times as fast as bf16",
    f"≥ {ONE_BF16:g}, and ≥ {ONE_INT4:g} × torch's int4 op; ≥ {SIXTEEN_BF16:g} × bf16 at 16 rows",
    "gpu",
    2,
    measure,
)
