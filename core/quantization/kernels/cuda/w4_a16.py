"""Products with weights of up to 4 bits for a few rows on NVIDIA GPUs: `w4_a16.cu`, compiled at first use.

The compiler is the one that torch carries. Affine grids, NF4, BitMoD's four tables and levels learned for each row; the
layout is that of the tensor core's fragments, with scales repeated for every 128 or 64 inputs. Up to 64 rows of bf16 or
fp16 are multiplied here, 16 at a time: the second pass finds the weights in the cache, and is many times as fast as the
Triton twin, which reads single codes out of that layout. For more rows the twin decodes it for a dense product.
"""

from __future__ import annotations

import functools
from ctypes import c_int, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch

from core.quantization import grids, scales
from core.quantization.kernels.cuda.program import Program, processors, shared_limit
from core.quantization.packing import pack, unpack
from core.quantization.spec import QuantSpec

GROUP, ROWS, FEW_ROWS, MOST_ROWS = 128, 16, 16, 64
ARGUMENTS = (*[c_void_p] * 5, c_int, c_int, c_int)
AFFINE, ONE_TABLE, FOUR_TABLES, TABLE_PER_ROW = range(4)
HALF_TYPES = (torch.bfloat16, torch.float16)
differentiable = True


def refuses(layer: Any) -> str | None:
    """Why this layer cannot run here, or None."""
    spec = layer.quant
    if layer.planes.device.type != "cuda":
        return f"it is for CUDA, the layer is on {layer.planes.device.type}"
    if torch.cuda.get_device_capability(layer.planes.device) < (8, 0):
        return "it needs tensor cores with bf16 (compute capability 8.0)"
    if reason := inexpressible(spec, layer.in_features, layer.out_features):
        return reason
    if not hasattr(torch.cuda, "_compile_kernel"):
        return f"torch {torch.__version__} cannot compile kernels at run time"
    return None


def inexpressible(spec: QuantSpec, inputs: int, outputs: int) -> str | None:
    """Why the layout cannot hold such a matrix, or None."""
    if spec.bits > 4:
        return f"it is for up to 4 bits, this is {spec.grid} of {spec.bits}"
    if spec.act != "none":
        return "the spec rounds activations itself"
    if spec.group > 0 and spec.group % (GROUP // 2):
        return f"groups of {spec.group} are no multiple of {GROUP // 2}"
    if inputs % GROUP or outputs % ROWS:
        return f"{outputs} × {inputs} is not in tiles of {ROWS} × {GROUP}"
    return None


def book_of(spec: QuantSpec) -> int:
    """How the kernel turns a code of this grid into a number."""
    return {"nf4": ONE_TABLE, "bitmod": FOUR_TABLES, "learned": TABLE_PER_ROW}.get(spec.grid, AFFINE)


def arrange(layer: Any) -> tuple[torch.Tensor, ...]:
    """(weights int32 (N/16, K/128, 2, 32, 4), scales int32 (N/16, K/128, halves, 16), tables uint8 (2, tables, 32))."""
    tensors = layer.form.named([layer.planes, *(getattr(layer, name) for name in layer.form.names[1:])])
    return laid_out(tensors, layer.quant, layer.in_features)


def laid_out(tensors: dict[str, torch.Tensor], spec: QuantSpec, inputs: int) -> tuple[torch.Tensor, ...]:
    """`arrange` of a state's tensors."""
    planes = tensors["planes"]
    rows, book = planes.shape[0], book_of(spec)
    weights = fragments(unpack(planes, inputs), by_row=book != AFFINE)
    halves = 2 if spec.group > 0 and spec.group % GROUP else 1
    tiled = (rows // ROWS, inputs // GROUP, halves, ROWS)
    if book == TABLE_PER_ROW:
        empty = torch.empty(*tiled[:2], 0, ROWS, dtype=torch.int32, device=planes.device)
        return weights, empty, two_byte_tables(tensors["levels"].expand(rows, -1))
    scale = scales.load(tensors, spec)
    if book == AFFINE:
        zero = tensors["zero"].float() if "zero" in tensors else torch.full_like(scale, grids.fixed_zero(spec))
        low, high = (part.to(torch.float16).view(torch.int16).int() & 0xFFFF for part in (scale, zero))
        words, tables = low | (high << 16), torch.empty(2, 0, 32, dtype=torch.uint8, device=planes.device)
    else:
        # the last two of 24 bits say which table: the scale moves by less than its rounding in bf16, by far
        words, tables = scale.contiguous().view(torch.int32), two_byte_tables(grids.tables(spec, planes.device))
        if book == FOUR_TABLES:
            words = (words & ~3) | tensors["selector"].int()
    words = words.repeat_interleave(inputs * halves // GROUP // words.shape[1], 1).expand(rows, -1)
    return weights, words.reshape(tiled[0], ROWS, tiled[1], halves).permute(0, 2, 3, 1).contiguous(), tables


def two_byte_tables(levels: torch.Tensor) -> torch.Tensor:
    """Levels (T, up to 16) as uint8 (2, T, 32) in bf16 and in fp16: the low bytes of all levels, then the high ones."""
    padded = torch.nn.functional.pad(levels.float(), (0, 16 - levels.shape[1]))
    made = [padded.to(dtype).view(torch.uint8).unflatten(1, (16, 2)).transpose(1, 2).flatten(1) for dtype in HALF_TYPES]
    return torch.stack(made).contiguous()


def _shifts(device: torch.device) -> torch.Tensor:
    """Four times 0, 1, … 7, as a cube."""
    return 4 * torch.arange(8, device=device, dtype=torch.int32).view(2, 2, 2)


def fragments(codes: torch.Tensor, by_row: bool = False) -> torch.Tensor:
    """uint8 codes (N, K) → int32 words in the order of the tensor core's fragments.

    Words 2i and 2i + 1 of lane (g, t) of a tile and group hold inputs 32i + 8t … + 7 of rows g and g + 8. The first of
    them has the first four inputs: nibbles 0 and 4 are the first two of row g, 1 and 5 of row g + 8, 2 and 6, 3 and 7
    the next two. `by_row` puts row g into the first and row g + 8 into the second, inputs in order.
    """
    rows, inputs = codes.shape
    parts = codes.view(rows // 16, 2, 8, inputs // 128, 4, 4, 2, 2, 2).to(torch.int32)
    # (tile, half, g, group, i, t, four, pair, which) → (tile, group, i, word, g, t, nibble's three bits)
    order = parts.permute(0, 3, 4, 1, 2, 5, 6, 7, 8) if by_row else parts.permute(0, 3, 4, 6, 2, 5, 8, 7, 1)
    words = (order << _shifts(codes.device)).sum((-1, -2, -3), dtype=torch.int32)
    # vector j of a lane holds words 4j … 4j + 3
    return words.view(rows // 16, inputs // 128, 2, 4, 32).transpose(3, 4).contiguous()


def unfragment(words: torch.Tensor, by_row: bool = False) -> torch.Tensor:
    """The inverse of `fragments`: uint8 codes (N, K)."""
    tiles, groups = words.shape[:2]
    by_word = words.transpose(3, 4).reshape(tiles, groups, 4, 2, 8, 4)
    nibbles = (by_word[..., None, None, None] >> _shifts(words.device)) & 15
    codes = nibbles.permute(0, 3, 4, 1, 2, 5, 6, 7, 8) if by_row else nibbles.permute(0, 8, 4, 1, 2, 5, 3, 7, 6)
    return codes.reshape(tiles * 16, groups * 128).to(torch.uint8)


def restore(layer: Any) -> torch.Tensor:
    """The planes that `arrange` took."""
    return pack(unfragment(layer._layout[0], book_of(layer.quant) != AFFINE), layer.quant.bits)


def multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the matrix: (…, N) in x's dtype; fp32 is rounded to bf16 for the product."""
    book = book_of(layer.quant)
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return w4_matmul(x, *layer._layout, book)
    return launch(x, *layer._layout, book)


class Shape(NamedTuple):
    """How a product is cut: tiles of 8 rows, warps of a block, tiles of 16 outputs a warp holds, units under way.

    `along`: the sums of activations are made with the products, which saves a block of one tile a pass over them.
    """

    tiles: int
    warps: int
    at_once: int
    stages: int
    along: bool = False

    def steps(self, outputs: int) -> int:
        """How often `at_once` tiles of 16 outputs are taken."""
        return -(-outputs // (ROWS * self.at_once))

    def shared_bytes(self, rows: int, inputs: int, held: bool, halves: int = 1) -> int:
        """Shared memory of a block; `held` when the activations lie in it."""
        ring = self.warps * self.stages * self.at_once * (1024 + 64 * halves)
        parts = 2 * self.warps * self.at_once * self.tiles * 512
        sums = inputs // GROUP * max(1, halves) * self.tiles * 32
        return ring + parts + sums + (rows * (inputs * 2 + 64) if held else 0)


@functools.cache
def shape_of(rows: int, inputs: int, limit: int, halves: int = 1) -> tuple[Shape, bool]:
    """The shape of a product, and whether its activations lie in shared memory, of which a block has `limit` bytes.

    Measured on an H200: activations in shared memory and one tile under way are fastest wherever they fit; where they
    do not, two tiles share what is read of them. A block of 16 warps has few groups to take, and a deeper queue than
    three only delays the first.
    """
    warps = 16
    while warps > 1 and warps > inputs // GROUP:
        warps //= 2
    held = Shape(1 if rows <= 8 else 2, warps, 1, 3)
    if held.shared_bytes(rows, inputs, True, halves) <= limit:
        return held, True
    shape = held._replace(at_once=2)
    while shape.shared_bytes(rows, inputs, False, halves) > limit:
        if shape.at_once > 1:
            shape = shape._replace(at_once=1)
        else:
            shape = shape._replace(warps=shape.warps // 2)
    return shape, False


def _blocks(shape: Shape, device: int) -> int:
    """Blocks that stay on the device at a time."""
    return processors(device) * max(1, 16 // shape.warps)


@functools.cache
def _shape_on(device: int, rows: int, inputs: int, outputs: int, halves: int) -> tuple[Shape, bool]:
    """`shape_of` on a device, `along` where every block has one step and reads the activations from afar."""
    shape, held = shape_of(rows, inputs, shared_limit(device), halves)
    return shape._replace(along=not held and shape.steps(outputs) <= _blocks(shape, device)), held


def launch(
    x: torch.Tensor,
    weights: torch.Tensor,
    both: torch.Tensor,
    tables: torch.Tensor,
    book: int = AFFINE,
    chosen: tuple[Shape, bool] | None = None,
) -> torch.Tensor:
    """`w4_matmul` without the dispatcher between; `chosen` takes the place of `shape_of`, for up to 16 rows."""
    outputs, inputs = weights.shape[0] * ROWS, weights.shape[1] * GROUP
    rows = x.reshape(-1, inputs)
    rows = rows.contiguous() if rows.dtype in HALF_TYPES else rows.to(torch.bfloat16).contiguous()
    if rows.shape[0] > MOST_ROWS:
        from core.quantization.kernels.triton import w4

        y = w4.multiply(rows, weights, both, tables, book)
    else:
        y = torch.empty(rows.shape[0], outputs, dtype=rows.dtype, device=x.device)
        for some, to in zip(rows.split(FEW_ROWS), y.split(FEW_ROWS)):
            if len(some):
                _start(some, to, weights, both, tables[int(rows.dtype == torch.float16)], book, chosen)
    return y.to(x.dtype).view(*x.shape[:-1], outputs)


def _start(
    rows: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
    both: torch.Tensor,
    table: torch.Tensor,
    book: int,
    chosen: tuple[Shape, bool] | None,
) -> None:
    """Queue the kernel for up to 16 rows."""
    (count, inputs), halves, device = rows.shape, both.shape[2], rows.device.index
    shape, held = chosen or _shape_on(device, count, inputs, y.shape[1], halves)
    program = _program(shape, held, rows.dtype == torch.float16, book, max(1, halves), device)
    program.start(
        min(shape.steps(y.shape[1]), _blocks(shape, device)),
        32 * shape.warps, shape.shared_bytes(count, inputs, held, halves),
        weights.data_ptr(), both.data_ptr(), table.data_ptr(), rows.data_ptr(), y.data_ptr(),
        count, y.shape[1], inputs,
    )  # fmt: skip


@torch.library.custom_op("graft::w4_matmul", mutates_args=(), device_types="cuda")
def w4_matmul(
    x: torch.Tensor, weights: torch.Tensor, both: torch.Tensor, tables: torch.Tensor, book: int
) -> torch.Tensor:
    """x (…, K) times weights arranged by `laid_out`: (…, N)."""
    return launch(x, weights, both, tables, book)


@w4_matmul.register_fake
def _(x, weights, both, tables, book):
    return x.new_empty(*x.shape[:-1], weights.shape[0] * ROWS)


def _keep_layout(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:4])
    ctx.book = inputs[4]


def _input_gradient(ctx, grad):
    from core.quantization.kernels.triton import w4

    return grad @ w4.decode(*ctx.saved_tensors, ctx.book, grad.dtype), None, None, None, None


w4_matmul.register_autograd(_input_gradient, setup_context=_keep_layout)


@functools.cache
def _program(shape: Shape, held: bool, half: bool, book: int, halves: int, device: int) -> Program:
    sizes = {"NT": shape.tiles, "WK": shape.warps, "R": shape.at_once, "STAGES": shape.stages}
    sizes |= {"HALF": int(half), "XS": int(held), "ALONG": int(shape.along), "BOOK": book, "HALVES": halves}
    return Program(Path(__file__).with_suffix(".cu"), sizes, ARGUMENTS, device)
