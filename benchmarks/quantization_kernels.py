"""Where the time of the low-bit products goes: every cut of the CUDA kernel, the Triton twins, and a plain call.

`python -m benchmarks.quantization_kernels` prints a table on a GPU: for each shape and number of rows the vendor's bf16
product, torch's int4 operator, then each kernel and shape of it, in ns under replayed graphs, with its error. It stores
nothing; the bar `quantization.w4a16` does.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.bars.quantization_w4a16 import SHAPES, bandwidth, graph_ms, make_layer, plain
from core.errors import BackendUnavailable

SPECS = ("rtn:4", "rtn:4:g64", "nf4", "bitmod:4", "squeezellm:dense", "squeezellm", "trilm", "rtn:8", "llm_int8")


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__, f"copy {bandwidth():.2f} TB/s")
    scrap = torch.zeros(1, device="cuda")
    print(f"a kernel that does nothing much: {1e6 * graph_ms([lambda: scrap.add_(1)], False):.0f} ns")
    for n, k in SHAPES:
        shape(n, k, 1)
    others(14336, 4096)
    for rows in (16, 8):
        for n, k in SHAPES:
            shape(n, k, rows)
    print(f"\nµs of a plain call, 4096 × 4096, one row: {plain()}")
    return 0


def shape(n: int, k: int, rows: int) -> None:
    """Every cut of the CUDA kernel on one shape."""
    import torch

    layer = make_layer(n, k, "rtn:4")
    layers = [layer._layout]
    while len(layers) * _bytes(layer._layout) < 2e8:
        layers.append(tuple(t.clone() for t in layer._layout))
    dense = layer.dense_weight(torch.bfloat16)
    copies = [dense] + [dense.clone() for _ in range(int(1e8 / dense.numel()))]
    _case(rows, layer, layers, copies)


def others(n: int, k: int) -> None:
    """The other kernels on one shape: codebooks, values beside the matrix, int8, more rows, and their peers."""
    import torch

    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
    for m in (1, 16, 32, 64, 512):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        dense = [weight, weight.clone()]
        bf16 = graph_ms([partial(torch.nn.functional.linear, x, w) for w in dense], False)
        print(f"\n{n} × {k}, {m} rows: bf16 {1e6 * bf16:.0f} ns")
        for spec in SPECS:
            try:
                layers = [random_layer(n, k, spec).prepare() for _ in range(6)]
                spent = graph_ms([partial(_forward, layer, x) for layer in layers], False)
            except (RuntimeError, ValueError, BackendUnavailable) as problem:
                print(f"  {spec:44} {type(problem).__name__}: {str(problem)[:90]}")
                continue
            name = f"{spec}, kernel {layers[0].kernel}"
            print(f"  {name:44} {1e6 * spent:8.0f} ns  {bf16 / spent:5.2f} × bf16", flush=True)
            if spec in ("rtn:4", "nf4") and m <= 64:
                from core.quantization.kernels.cuda.w4_a16 import book_of
                from core.quantization.kernels.triton import w4

                book = book_of(layers[0].quant)
                spent = graph_ms([partial(w4.multiply, x, *layer._layout, book) for layer in layers], False)
                print(f"  {spec + ', Triton twin':44} {1e6 * spent:8.0f} ns  {bf16 / spent:5.2f} × bf16", flush=True)
        _bitsandbytes(weight, x, bf16)


def random_layer(n: int, k: int, spec: str) -> Any:
    """A layer whose codes and scales are random: what it costs does not depend on them."""
    import torch

    from core.quantization import QuantizedLinear, parse

    quant = parse(spec)
    share = quant.outliers + quant.sensitive
    layer = QuantizedLinear(k, n, quant, extra={"nnz": round(share * n * k)} if share else {}, device="cuda")
    with torch.no_grad():
        layer.planes.copy_(torch.randint(-(2**31), 2**31 - 1, layer.planes.shape, device="cuda"))
        for buffer in layer.buffers():
            buffer.copy_(torch.rand(buffer.shape, device="cuda") * (14 if buffer.dtype == torch.uint8 else 0.02))
        if share:
            place = torch.randperm(n * k, device="cuda")[: layer.extra["nnz"]].sort().values
            layer.sparse_col.copy_(place % k)
            ends = torch.searchsorted(place, torch.arange(n + 1, device="cuda") * k)
            layer.sparse_crow.copy_(ends)
    return layer


def _forward(layer: Any, x: Any) -> Any:
    import torch

    with torch.no_grad():
        return layer(x)


def _bitsandbytes(weight: Any, x: Any, bf16: float) -> None:
    try:
        import bitsandbytes.functional as peer
        from bitsandbytes import matmul_4bit

        held = [peer.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4") for _ in range(6)]
        spent = graph_ms([partial(matmul_4bit, x, codes.t(), quant_state=state) for codes, state in held], False)
        print(f"  {'nf4 of bitsandbytes':44} {1e6 * spent:8.0f} ns  {bf16 / spent:5.2f} × bf16", flush=True)
    except (ImportError, RuntimeError) as problem:
        print(f"  {'nf4 of bitsandbytes':44} {type(problem).__name__}: {str(problem)[:90]}")


def _bytes(layout: tuple[Any, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in layout)


def _case(rows: int, layer: Any, layers: list[Any], copies: list[Any]) -> None:
    import torch

    x = torch.randn(rows, layer.in_features, device="cuda", dtype=torch.bfloat16)
    wanted = x.float() @ layer.dense_weight().t()
    bf16 = graph_ms([partial(torch.nn.functional.linear, x, w) for w in copies], False)
    print(f"\n{layer.out_features} × {layer.in_features}, {rows} rows: bf16 {1e6 * bf16:.0f} ns")
    for name, call in cuts(rows, layer.in_features):
        try:
            error = float((call(x, layers[0]).float() - wanted).norm() / wanted.norm())
            spent = graph_ms([partial(call, x, a) for a in layers], False)
        except (RuntimeError, BackendUnavailable) as problem:
            print(f"  {name:44} {type(problem).__name__}: {str(problem)[:90]}")
            continue
        rate, wrong = _bytes(layers[0]) / spent / 1e9, "" if error < 0.01 else f"  WRONG {error:.4f}"
        print(f"  {name:44} {1e6 * spent:8.0f} ns  {bf16 / spent:5.2f} × bf16  {rate:.2f} TB/s{wrong}", flush=True)


def cuts(rows: int, inputs: int) -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Name and call of each cut of the CUDA kernel for so many rows."""
    from core.quantization.kernels.cuda import w4_a16

    tiles = 1 if rows <= 8 else 2
    limit = w4_a16.shared_limit(0)
    yield "as chosen", lambda x, a: w4_a16.launch(x, *a)
    for warps, at_once, stages, along in itertools.product((8, 16), (1, 2, 4), (3, 4, 6, 8, 12), (False, True)):
        shape = w4_a16.Shape(tiles, warps, at_once, stages, along)
        several = limit if warps == 16 else limit // 2
        for held in (True, False):
            used = shape.shared_bytes(rows, inputs, held)
            wasteful = used < 48 * 1024 or (at_once > 1 and rows == 1) or (not held and rows == 1) or (held and along)
            if used <= several and not wasteful:
                yield (
                    f"warps {warps} at once {at_once} stages {stages} held {int(held)} along {int(along)}",
                    lambda x, a, cut=(shape, held): w4_a16.launch(x, *a, chosen=cut),
                )


if __name__ == "__main__":
    sys.exit(main())
