"""Products with 4-bit affine weights for a few rows on NVIDIA GPUs: `w4_a16.cu`, compiled at first use.

The compiler is the one that torch carries. The layout is that of the tensor core's fragments; scales of a whole row are
repeated for every 128 inputs. Up to 16 rows of bf16 or fp16; more rows go to the Triton kernel or to a dense product.
"""

from __future__ import annotations

import functools
from ctypes import c_int, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch

from core.quantization import grids, scales
from core.quantization.kernels.cuda.program import Program, shared_limit
from core.quantization.packing import pack, unpack

most_rows = 16
GROUP, ROWS = 128, 16
UNIT = 1088
ARGUMENTS = (c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int, c_int)


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


def _shifts(device: torch.device) -> torch.Tensor:
    """Bit of a code in its word, by (pair of inputs, half of the tile's rows, which of the pair)."""
    pair, half, which = torch.meshgrid(*(torch.arange(2, device=device, dtype=torch.int32),) * 3, indexing="ij")
    return 4 * (which * 4 + pair * 2 + half)


def fragments(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes (N, K) → int32 words in the order of the tensor core's fragments.

    Word k = 2i + c of lane (g, t) of a tile and group holds inputs 32i + 8t + 4c + (0, 1, 2, 3) of rows g and g + 8:
    nibbles 0 and 4 are the first two of row g, 1 and 5 of row g + 8, 2 and 6, 3 and 7 the next two.
    """
    rows, inputs = codes.shape
    parts = codes.view(rows // 16, 2, 8, inputs // 128, 4, 4, 2, 2, 2).to(torch.int32)
    # (tile, half, g, group, i, t, c, pair, which) → (tile, group, i, c, g, t, pair, half, which)
    order = parts.permute(0, 3, 4, 6, 2, 5, 7, 1, 8)
    words = (order << _shifts(codes.device)).sum((-1, -2, -3), dtype=torch.int32)
    # vector j of a lane holds words 4j … 4j + 3
    return words.view(rows // 16, inputs // 128, 2, 4, 32).transpose(3, 4).contiguous()


def unfragment(words: torch.Tensor) -> torch.Tensor:
    """The inverse of `fragments`: uint8 codes (N, K)."""
    tiles, groups = words.shape[:2]
    by_k = words.transpose(3, 4).reshape(tiles, groups, 4, 2, 8, 4)
    nibbles = (by_k[..., None, None, None] >> _shifts(words.device)) & 15
    codes = nibbles.permute(0, 7, 4, 1, 2, 5, 3, 6, 8)
    return codes.reshape(tiles * 16, groups * 128).to(torch.uint8)


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    return pack(unfragment(layer._layout[0]), layer.quant.bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix: (…, N) in x's dtype; fp32 is rounded to bf16 for the product."""
    if torch.compiler.is_compiling():
        return w4_matmul(x, *layer._layout)
    return launch(x, *layer._layout)


class Shape(NamedTuple):
    """How a product is cut: tiles of 8 rows, warps of a block, tiles of 16 outputs a warp holds, units under way."""

    tiles: int
    warps: int
    at_once: int
    stages: int

    def shared_bytes(self, rows: int, inputs: int, held: bool) -> int:
        """Shared memory of a block; `held` when the activations lie in it."""
        ring = self.warps * self.stages * self.at_once * UNIT
        parts = 2 * self.warps * self.at_once * self.tiles * 512
        return ring + parts + inputs // GROUP * self.tiles * 32 + (rows * (inputs * 2 + 64) if held else 0)


@functools.cache
def shape_of(rows: int, inputs: int, limit: int) -> tuple[Shape, bool]:
    """The shape of a product, and whether its activations lie in shared memory, of which a block has `limit` bytes.

    Up to 8 rows the weights of one tile are under way as deep as memory allows; more rows share their activations
    between two tiles.
    """
    warps = 16
    while warps > 1 and warps > inputs // GROUP:
        warps //= 2
    shape = Shape(1, warps, 1, 8) if rows <= 8 else Shape(2, warps, 2, 4)
    while shape.shared_bytes(rows, inputs, False) > limit and shape.stages > 2:
        shape = shape._replace(stages=shape.stages - 1)
    return shape, rows * inputs <= 32768 and shape.shared_bytes(rows, inputs, True) <= limit


def launch(
    x: torch.Tensor, weights: torch.Tensor, both: torch.Tensor, chosen: tuple[Shape, bool] | None = None
) -> torch.Tensor:
    """`w4_matmul` without the dispatcher between; `chosen` takes the place of `shape_of`."""
    outputs, inputs = weights.shape[0] * ROWS, weights.shape[1] * GROUP
    rows = x.reshape(-1, inputs)
    if rows.dtype not in (torch.bfloat16, torch.float16):
        rows = rows.to(torch.bfloat16)
    rows = rows.contiguous()
    count = rows.shape[0]
    y = torch.empty(count, outputs, dtype=rows.dtype, device=x.device)
    if count:
        shape, held = chosen or shape_of(count, inputs, shared_limit(x.device.index))
        program = _program(shape, held, rows.dtype == torch.float16, x.device.index)
        program.start(
            min(-(-weights.shape[0] // shape.at_once), program.processors * max(1, 16 // shape.warps)),
            32 * shape.warps, shape.shared_bytes(count, inputs, held),
            weights.data_ptr(), both.data_ptr(), rows.data_ptr(), y.data_ptr(), count, outputs, inputs,
        )  # fmt: skip
    return y.to(x.dtype).view(*x.shape[:-1], outputs)


@torch.library.custom_op("graft::w4_matmul", mutates_args=(), device_types="cuda")
def w4_matmul(x: torch.Tensor, weights: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """x (…, K) times weights arranged by `fragments`: (…, N)."""
    return launch(x, weights, both)


@w4_matmul.register_fake
def _(x, weights, both):
    return x.new_empty(*x.shape[:-1], weights.shape[0] * ROWS)


@functools.cache
def _program(shape: Shape, held: bool, half: bool, device: int) -> Program:
    sizes = {"NT": shape.tiles, "WK": shape.warps, "R": shape.at_once, "STAGES": shape.stages}
    source = Path(__file__).with_suffix(".cu")
    return Program(source, sizes | {"HALF": int(half), "XS": int(held)}, ARGUMENTS, device)
