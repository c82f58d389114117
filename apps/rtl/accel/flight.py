"""A language model on a sparse accelerator: instructions, on-chip buffers, cycles (after FlightLLM, Zeng et al. 2024).

`compile_step` turns a model's shape into the instructions of one decoding step or one prefill. Every length would need
instructions of its own; `share` lets lengths of a bucket use those of its longest and counts the bytes saved and the
cycles lost. `plan_buffers` keeps all activations of a decoding step on the chip. The cycle model overlaps loading with
computing: an instruction takes the longer of the two. Timing within the chip is not modelled beyond that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.rtl.accel.sparse import GROUP, kept, storage_bits
from core.errors import ConfigError

TILE = 256
"""Tokens of the cache, or of a prefill, that one instruction handles."""


@dataclass(frozen=True)
class Shape:
    """A decoder's shape, as in the config.json of a Llama."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    head_dim: int

    @classmethod
    def of(cls, config: str | Path | Mapping[str, Any]) -> Shape:
        """From config.json, its folder, or its contents. Raises `ConfigError` naming the key that is missing."""
        where = "config"
        if not isinstance(config, Mapping):
            where = str(config)
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"the configuration cannot be read: {error}", where=where) from error
        assert isinstance(config, Mapping)
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return cls(
                int(config["num_hidden_layers"]), hidden, heads, int(config.get("num_key_value_heads") or heads),
                int(config["intermediate_size"]), int(config["vocab_size"]),
                int(config.get("head_dim") or hidden // heads),
            )  # fmt: skip
        except KeyError as error:
            raise ConfigError(f"the configuration has no {error}", where=where, hint="a Llama's config.json") from error


@dataclass(frozen=True)
class Board:
    """The accelerator.

    Args:
        macs: multipliers. mhz: clock. gbs: bandwidth of the off-chip memory, GB/s. on_chip_kb: of buffers.
        weight_bits, act_bits: of numbers. sparsity: of the weights in `sparse.MODES`. instruction_bytes: of one
            instruction. issue: cycles from one instruction to the next. Defaults are of the size of an Alveo U280.
    """

    macs: int = 6144
    mhz: float = 225.0
    gbs: float = 460.0
    on_chip_kb: int = 4096
    weight_bits: int = 8
    act_bits: int = 8
    sparsity: str = "2:4"
    instruction_bytes: int = 16
    issue: int = 8

    def __post_init__(self) -> None:
        kept(self.sparsity)
        if min(self.macs, self.mhz, self.gbs, self.on_chip_kb, self.weight_bits, self.act_bits) <= 0:
            raise ConfigError("every figure of a board is positive", where="Board")

    @property
    def bytes_a_cycle(self) -> float:
        return self.gbs * 1e3 / self.mhz


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        op: mv and mm multiply by weights; qk and av by the cache; norm, rope, softmax, act and add are elementwise;
            kv writes the cache. rows: tokens, or tokens of the cache for qk and av. k, n: inner and outer size.
        macs: multiplications, of kept weights only. moved: bytes to or from off-chip memory.
    """

    op: str
    layer: int
    rows: int
    k: int
    n: int
    macs: int = 0
    moved: int = 0


def weights_of(shape: Shape) -> list[tuple[str, int, int]]:
    """Name, inner and outer size of a layer's matrices."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return [
        ("qkv", shape.hidden, q + 2 * kv), ("out", q, shape.hidden), ("gate_up", shape.hidden, 2 * shape.ffn),
        ("down", shape.ffn, shape.hidden),
    ]  # fmt: skip


def compile_step(shape: Shape, board: Board, context: int, tokens: int = 1) -> list[Instruction]:
    """Instructions for `tokens` new tokens at the end of `context`; one token is decoding, more are a prefill."""
    if not 1 <= tokens <= context:
        raise ConfigError(f"{tokens} tokens of a context of {context}", hint="1 ≤ tokens ≤ context")
    found: list[Instruction] = []
    for layer in range(shape.layers):
        found += _layer(shape, board, layer, context, tokens)
    found.append(Instruction("norm", shape.layers, 1, shape.hidden, 1))
    found += _product(shape, board, shape.layers, 1, shape.hidden, shape.vocab)
    return found


def _layer(s: Shape, board: Board, layer: int, context: int, tokens: int) -> Iterator[Instruction]:
    q, kv, width = s.heads * s.head_dim, s.kv_heads * s.head_dim, board.act_bits
    (_, *qkv), (_, *out), (_, *gate_up), (_, *down) = weights_of(s)
    yield Instruction("norm", layer, tokens, s.hidden, 1)
    yield from _product(s, board, layer, tokens, *qkv)
    yield Instruction("rope", layer, tokens, q + kv, 1)
    yield Instruction("kv", layer, tokens, 2 * kv, 1, moved=tokens * 2 * kv * width // 8)
    for op, ks, ns in (("qk", s.head_dim, 1), ("softmax", 1, 1), ("av", 1, s.head_dim)):
        for start in range(0, tokens, TILE):
            rows = min(TILE, tokens - start)
            for at in range(0, context, TILE):
                part = min(TILE, context - at)
                product = op != "softmax"
                macs = rows * part * s.head_dim * s.heads if product else 0
                moved = part * kv * width // 8 if product else 0
                yield Instruction(op, layer, part, ks * rows, ns * s.heads, macs, moved)
    yield from _product(s, board, layer, tokens, *out)
    yield Instruction("add", layer, tokens, s.hidden, 1)
    yield Instruction("norm", layer, tokens, s.hidden, 1)
    yield from _product(s, board, layer, tokens, *gate_up)
    yield Instruction("act", layer, tokens, s.ffn, 1)
    yield from _product(s, board, layer, tokens, *down)
    yield Instruction("add", layer, tokens, s.hidden, 1)


def _product(s: Shape, board: Board, layer: int, tokens: int, k: int, n: int) -> Iterator[Instruction]:
    """A product with a weight matrix, tiled over tokens; its weights are read once a tile."""
    weight_bytes = math.ceil(n * storage_bits(k, board.sparsity, board.weight_bits) / 8)
    for start in range(0, tokens, TILE):
        rows = min(TILE, tokens - start)
        macs = rows * n * (k // GROUP * kept(board.sparsity))
        yield Instruction("mv" if rows == 1 else "mm", layer, rows, k, n, macs, weight_bytes)


def cycles(instructions: Iterable[Instruction], board: Board) -> int:
    """Cycles of instructions: each takes the longer of computing and moving, and the issue of the next."""
    total = 0
    for one in instructions:
        elementwise = 0 if one.macs else one.rows * one.k * one.n
        computing = math.ceil(max(one.macs, elementwise) / board.macs)
        total += max(computing, math.ceil(one.moved / board.bytes_a_cycle)) + board.issue
    return total


def tokens_per_s(shape: Shape, board: Board, context: int) -> float:
    """Decoding speed at a context length."""
    return board.mhz * 1e6 / cycles(compile_step(shape, board, context), board)


# ---- instructions shared by lengths ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What buckets save: instruction bytes for every length up to the longest, and the cycles that they add."""

    lengths: int
    buckets: int
    bytes_each: int
    bytes_shared: int
    slower: float

    def __str__(self) -> str:
        return (
            f"{self.bytes_each / 1e6:,.1f} MB of instructions for {self.lengths} lengths, "
            f"{self.bytes_shared / 1e6:,.2f} MB for {self.buckets} buckets "
            f"({self.bytes_each / self.bytes_shared:,.0f} times less), {100 * self.slower:.1f} % more cycles"
        )


def share(shape: Shape, board: Board, longest: int, bucket: int, *, prefill: bool = False) -> Shared:
    """Lengths 1 to `longest` in buckets of `bucket`: each length runs the instructions of its bucket's longest."""
    if bucket < 1 or longest < 1:
        raise ConfigError("bucket and longest are at least 1", where="share")
    each = shared = 0
    own_cycles = run_cycles = 0
    tops: dict[int, tuple[int, int]] = {}
    for length in range(1, longest + 1):
        count, spent = _cost(shape, board, length, prefill)
        top = min(longest, math.ceil(length / bucket) * bucket)
        if top not in tops:
            tops[top] = _cost(shape, board, top, prefill)
            shared += tops[top][0] * board.instruction_bytes
        each += count * board.instruction_bytes
        own_cycles, run_cycles = own_cycles + spent, run_cycles + tops[top][1]
    return Shared(longest, len(tops), each, shared, run_cycles / own_cycles - 1)


def _cost(shape: Shape, board: Board, length: int, prefill: bool) -> tuple[int, int]:
    """Number of instructions and cycles at a length; layers are alike, so one is compiled and counted often."""
    tokens = length if prefill else 1
    one = list(_layer(shape, board, 0, length, tokens))
    rest = compile_step(replace(shape, layers=0), board, length, tokens)
    return (
        shape.layers * len(one) + len(rest),
        shape.layers * cycles(one, board) + cycles(rest, board),
    )


# ---- buffers of a decoding step ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Buffer:
    """Activations between two operations: first and last operation that needs them, and where they lie."""

    name: str
    size: int
    first: int
    last: int
    address: int = 0


@dataclass(frozen=True)
class BufferPlan:
    """Buffers of one layer of a decoding step; layers follow each other in the same places.

    Args:
        peak: bytes used. traffic_saved: bytes a token that would go to off-chip memory and back without the plan.
    """

    buffers: tuple[Buffer, ...]
    peak: int
    traffic_saved: int


def plan_buffers(shape: Shape, board: Board, context: int) -> BufferPlan:
    """Place the activations of a decoding step on the chip, first fit by size.

    Raises:
        ConfigError: they need more than the chip has.
    """
    s, width = shape, board.act_bits
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    # operations: 0 norm, 1 qkv, 2 rope, 3 qk, 4 softmax, 5 av, 6 out, 7 add, 8 norm, 9 gate_up, 10 act, 11 down, 12 add
    lives = [
        ("residual", s.hidden, 0, 12), ("normed", s.hidden, 0, 1), ("qkv", q + 2 * kv, 1, 5),
        ("scores", s.heads * context, 3, 5), ("mixed", q, 5, 6), ("attended", s.hidden, 6, 7),
        ("normed again", s.hidden, 8, 9), ("gate_up", 2 * s.ffn, 9, 10), ("acted", s.ffn, 10, 11),
        ("down", s.hidden, 11, 12),
    ]  # fmt: skip
    placed: list[Buffer] = []
    for name, count, first, last in sorted(lives, key=lambda life: -life[1]):
        size = math.ceil(count * width / 8)
        placed.append(Buffer(name, size, first, last, _place(placed, size, first, last)))
    peak = max(b.address + b.size for b in placed)
    if peak > board.on_chip_kb * 1024:
        raise ConfigError(
            f"a decoding step at context {context} needs {peak / 1024:.0f} KB on the chip of {board.on_chip_kb} KB",
            hint="shorten the context, or take a board with more on-chip memory",
        )
    moved = sum(2 * b.size for b in placed) * s.layers
    return BufferPlan(tuple(sorted(placed, key=lambda b: b.first)), peak, moved)


def _place(placed: Sequence[Buffer], size: int, first: int, last: int) -> int:
    """The lowest address that is free from operation `first` to `last`."""
    taken = sorted((b.address, b.address + b.size) for b in placed if b.first <= last and first <= b.last)
    address = 0
    for start, end in taken:
        if address + size <= start:
            break
        address = max(address, end)
    return address
