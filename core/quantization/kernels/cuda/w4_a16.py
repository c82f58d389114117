"""Products with 4-bit affine weights for a few rows on NVIDIA GPUs: `w4_a16.cu`, compiled at first use.

The compiler is the one that torch carries. The layout is that of the tensor core's fragments; scales of a whole row are
repeated for every 128 inputs. Up to 16 rows of bf16 or fp16; more rows decode and go to the vendor's matrix product.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from core.quantization import grids, scales
from core.quantization.packing import pack, unpack

most_rows = 16
GROUP, ROWS = 128, 16


def refuses(layer: Any) -> str | None:
    """Why this layer cannot run here, or None."""
    spec = layer.quant
    if layer.planes.device.type != "cuda":
        return f"it is for CUDA, the layer is on {layer.planes.device.type}"
    if torch.cuda.get_device_capability(layer.planes.device) < (8, 0):
        return "it needs tensor cores with bf16 (compute capability 8.0)"
    if spec.codebook or spec.grid == "learned" or spec.bits > 4:
        return f"it is for affine grids of up to 4 bits, this is {spec.grid} of {spec.bits}"
    if spec.act != "none":
        return "the spec rounds activations itself"
    if layer.extra.get("nnz"):
        return "values lie beside the matrix"
    if spec.group > 0 and spec.group % GROUP:
        return f"groups of {spec.group} are no multiple of {GROUP}"
    if layer.in_features % GROUP or layer.out_features % ROWS:
        return f"{layer.out_features} × {layer.in_features} is not in tiles of {ROWS} × {GROUP}"
    if not hasattr(torch.cuda, "_compile_kernel"):
        return f"torch {torch.__version__} cannot compile kernels at run time"
    return None


def arrange(layer: Any) -> tuple[torch.Tensor, ...]:
    """(weights int32 (N/16, K/128, 2, 32, 4), scales int32 (N/16, K/128, 16)) as the kernel reads them."""
    rows, inputs = layer.out_features, layer.in_features
    tensors = layer.form.named([layer.planes, *(getattr(layer, name) for name in layer.form.names[1:])])
    weights = fragments(unpack(layer.planes, inputs))
    scale = scales.load(tensors, layer.quant)
    zero = tensors["zero"].float() if "zero" in tensors else torch.full_like(scale, grids.fixed_zero(layer.quant))
    groups = inputs // GROUP
    halves = [
        _by_group(part, rows, groups).to(torch.float16).view(torch.int16).int() & 0xFFFF for part in (scale, zero)
    ]
    both = halves[0] | (halves[1] << 16)
    return weights, both.view(rows // ROWS, ROWS, groups).transpose(1, 2).contiguous()


def _by_group(values: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    return values.repeat_interleave(groups // values.shape[1], 1).expand(rows, groups)


def fragments(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes (N, K) → int32 words in the order of the tensor core's fragments.

    Word k of lane (g, t) of a tile and group holds inputs 32t + 4k + (0, 1, 2, 3) of rows g and g + 8: nibbles 0 and 4
    are the first two of row g, 1 and 5 of row g + 8, 2 and 6, 3 and 7 the next two.
    """
    rows, inputs = codes.shape
    parts = codes.view(rows // 16, 2, 8, inputs // 128, 4, 8, 2, 2).to(torch.int64)
    # (tile, half of rows, g, group, t, k, pair of inputs, which of the pair)
    order = parts.permute(0, 3, 5, 2, 4, 6, 1, 7)
    # (tile, group, k, g, t, pair, half, which): nibble = which · 4 + pair · 2 + half
    shift = torch.tensor([[[which * 4 + pair * 2 + half for which in (0, 1)] for half in (0, 1)] for pair in (0, 1)])
    words = (order << (4 * shift.to(codes.device))).sum((-1, -2, -3))
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    # k = 4j + c: vector j of a lane holds words c = 0 … 3
    return words.view(rows // 16, inputs // 128, 2, 4, 32).transpose(3, 4).contiguous()


def unfragment(words: torch.Tensor) -> torch.Tensor:
    """The inverse of `fragments`: uint8 codes (N, K)."""
    tiles, groups = words.shape[:2]
    by_k = words.transpose(3, 4).reshape(tiles, groups, 8, 8, 4)
    shift = torch.tensor([[[which * 4 + pair * 2 + half for which in (0, 1)] for half in (0, 1)] for pair in (0, 1)])
    nibbles = (by_k[..., None, None, None].to(torch.int64) >> (4 * shift.to(words.device))) & 15
    # (tile, group, k, g, t, pair, half, which) → (tile, half, g, group, t, k, pair, which)
    codes = nibbles.permute(0, 6, 3, 1, 4, 2, 5, 7)
    return codes.reshape(tiles * 16, groups * 128).to(torch.uint8)


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    return pack(unfragment(layer._layout[0]), layer.quant.bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix: (…, N) in x's dtype; fp32 is rounded to bf16 for the product."""
    return w4_matmul(x, *layer._layout)


@torch.library.custom_op("graft::w4_matmul", mutates_args=(), device_types="cuda")
def w4_matmul(x: torch.Tensor, weights: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """x (…, K) times weights arranged by `fragments`: (…, N)."""
    outputs, inputs = weights.shape[0] * ROWS, weights.shape[1] * GROUP
    rows = x.reshape(-1, inputs)
    rows = (rows if rows.dtype in (torch.bfloat16, torch.float16) else rows.to(torch.bfloat16)).contiguous()
    y = torch.empty(rows.shape[0], outputs, dtype=rows.dtype, device=x.device)
    if rows.shape[0]:
        tiles = 1 if rows.shape[0] <= 8 else 2
        wn, wk = block_shape(outputs, inputs, tiles)
        kernel = _compiled(tiles, wn, wk, rows.dtype == torch.float16, torch.cuda.get_device_capability(x.device))
        grid = -(-(outputs // ROWS) // wn)
        kernel(
            grid=(grid, 1, 1), block=(32 * wn * wk, 1, 1),
            args=[weights, both, rows, y, rows.shape[0], outputs, inputs],
        )  # fmt: skip
    return y.to(x.dtype).reshape(*x.shape[:-1], outputs)


@w4_matmul.register_fake
def _(x, weights, both):
    return x.new_empty(*x.shape[:-1], weights.shape[0] * ROWS)


def block_shape(outputs: int, inputs: int, tiles: int) -> tuple[int, int]:
    """(tiles of outputs, parts of K) of one block: enough parts that every multiprocessor has loads in flight."""
    if tiles == 1:
        return (1, 8) if outputs <= 8192 else (2, 4)
    return (2, 8) if outputs <= 8192 else (4, 4)


@functools.cache
def _compiled(tiles: int, wn: int, wk: int, half: bool, capability: tuple[int, int]) -> Any:
    source = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")
    sizes = {"NT": tiles, "WN": wn, "WK": wk, "HALF": int(half), "DEPTH": 4 if tiles == 1 else 2}
    defined = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
    return torch.cuda._compile_kernel(defined + source, "w4_a16", compute_capability="".join(map(str, capability)))
