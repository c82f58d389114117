"""A chain of multipliers for N:M sparse weights, chosen at run time (FlightLLM, Zeng et al. 2024): Verilog and model.

Of every four weights 4, 2 or 1 are kept, each with its place in the group. The chain has `lanes` multipliers in every
mode; a multiplexer before each takes the activation that its weight belongs to. So the same multipliers cover `lanes`
dense weights a cycle, or 2 × and 4 × as many positions of sparse ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.rtl.accel.bench import line, testbench, word
from apps.rtl.example import RtlExample
from core.errors import ConfigError, DataError

GROUP = 4
MODES = {"dense": 4, "2:4": 2, "1:4": 1}
"""Name of a mode → weights kept of a group."""


@dataclass(frozen=True)
class ChainConfig:
    """A chain: multipliers, bits of weights and activations, bits of the sum."""

    lanes: int = 4
    bits: int = 8
    acc: int = 32

    def __post_init__(self) -> None:
        if self.lanes < GROUP or self.lanes % GROUP or self.lanes > 64:
            raise ConfigError(f"a chain of {self.lanes} lanes", where="ChainConfig", hint="a multiple of 4, at most 64")
        if not 2 <= self.bits <= 16 or not 2 * self.bits + 6 <= self.acc <= 64:
            raise ConfigError("bits is from 2 to 16, acc at least twice that and 6 more", where="ChainConfig")

    @property
    def inputs(self) -> int:
        """Activations a cycle in the sparsest mode, which is how many the chain has ports for."""
        return self.lanes * GROUP


def span(config: ChainConfig, mode: str) -> int:
    """Weight positions that one cycle covers in a mode."""
    return config.lanes * GROUP // kept(mode)


def kept(mode: str) -> int:
    """Weights kept of a group of four."""
    if mode not in MODES:
        raise ConfigError(f"unknown sparsity '{mode}'", hint=f"known: {', '.join(MODES)}")
    return MODES[mode]


def prune(weights: np.ndarray, mode: str) -> np.ndarray:
    """`weights` (..., K), K a multiple of 4, with all but the largest of every group set to zero."""
    n = kept(mode)
    if weights.shape[-1] % GROUP:
        raise DataError(f"{weights.shape[-1]} weights are no groups of {GROUP}", field="weights")
    groups = weights.reshape(*weights.shape[:-1], -1, GROUP)
    order = np.argsort(-np.abs(groups), axis=-1, kind="stable")
    found = groups.copy()
    np.put_along_axis(found, order[..., n:], 0, axis=-1)
    return found.reshape(weights.shape)


def pack(weights: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and places (K / 4 · n,) of weights (K,) that are N:M sparse; missing ones are zeros.

    Raises:
        DataError: a group holds more than the mode keeps, naming the first.
    """
    n, groups = kept(mode), weights.reshape(-1, GROUP)
    counts = (groups != 0).sum(1)
    if (counts > n).any():
        group = int(np.argmax(counts > n))
        raise DataError(f"group {group} has {counts[group]} weights that are not zero", expected=f"at most {n} of 4")
    order = np.argsort(groups == 0, axis=1, kind="stable")[:, :n]
    places = np.sort(order, axis=1)
    return np.take_along_axis(groups, places, 1).reshape(-1), places.reshape(-1)


def storage_bits(count: int, mode: str, bits: int = 8) -> int:
    """Bits of `count` weight positions: the values kept, and two bits a value for its place unless dense."""
    values = count // GROUP * kept(mode)
    return values * (bits + (0 if mode == "dense" else 2))


def golden(weights: np.ndarray, activations: np.ndarray, acc: int) -> int:
    """The dot product modulo 2^acc, as a signed number."""
    total = int((weights.astype(object) * activations.astype(object)).sum()) % (1 << acc)
    return total - (1 << acc) if total >> (acc - 1) else total


def verilog(config: ChainConfig, name: str = "sparse_chain") -> str:
    """The chain. `mode` is 0 dense, 1 for 2:4, 2 for 1:4; lane j has bits j of `w` and `place`."""
    c, b, w = config, config.bits, config.acc
    lines = [
        f"module {name} (\n  input clk,\n  input clear,\n  input valid,\n  input [1:0] mode,\n"
        f"  input [{c.inputs * b - 1}:0] x,\n  input [{c.lanes * b - 1}:0] w,\n  input [{2 * c.lanes - 1}:0] place,\n"
        f"  output reg signed [{w - 1}:0] sum\n);\n"
    ]
    for j in range(c.lanes):
        dense, half, quarter = j // GROUP * GROUP, j // 2 * GROUP, j * GROUP
        group = "[" + f"{GROUP * b}*{{g}} +: {GROUP * b}" + "]"
        groups = [group.format(g=at // GROUP) for at in (dense, half, quarter)]
        lines.append(
            f"  wire [{GROUP * b - 1}:0] group{j} = "
            f"mode == 0 ? x{groups[0]} : mode == 1 ? x{groups[1]} : x{groups[2]};\n"
            f"  wire [1:0] place{j} = mode == 0 ? 2'd{j % GROUP} : place[{2 * j} +: 2];\n"
            f"  wire signed [{b - 1}:0] x{j} = group{j}[{b}*place{j} +: {b}];\n"
            f"  wire signed [{b - 1}:0] w{j} = w[{b * j} +: {b}];\n"
            f"  wire signed [{w - 1}:0] chain{j} = {f'chain{j - 1} + ' if j else ''}x{j} * w{j};\n"
        )
    lines.append(
        "  always @(posedge clk)\n    if (clear) sum <= 0;\n"
        f"    else if (valid) sum <= sum + chain{c.lanes - 1};\nendmodule\n"
    )
    return "".join(lines)


def example(
    config: ChainConfig | None = None, *, vectors: int = 30, cycles: int = 4, seed: int = 0, top: str = "sparse_chain"
) -> RtlExample:
    """The chain as a task, with a testbench whose values come from numpy.

    Args:
        vectors: dot products in each mode. cycles: cycles of each.
    """
    config = config or ChainConfig()
    c, draw = config, np.random.default_rng(seed)
    fields = [("clear", 1), ("valid", 1), ("check", 1), ("mode", 2), ("x", c.inputs * c.bits), ("w", c.lanes * c.bits),
              ("place", 2 * c.lanes), ("wanted", c.acc)]  # fmt: skip
    limit, lines = 1 << (c.bits - 1), []
    for code, mode in enumerate(MODES):
        for _ in range(vectors):
            length = span(c, mode) * cycles
            weights, x = prune(draw.integers(-limit, limit, length), mode), draw.integers(-limit, limit, length)
            values, places = pack(weights, mode)
            lines.append(line(fields, clear=1))
            for step in range(cycles):
                mine = slice(step * c.lanes, (step + 1) * c.lanes)
                inputs = x[step * span(c, mode) : (step + 1) * span(c, mode)]
                lines.append(
                    line(fields, valid=1, mode=code, x=word(inputs, c.bits), w=word(values[mine], c.bits),
                         place=word(places[mine], 2))
                )  # fmt: skip
            lines.append(line(fields, check=1, wanted=golden(weights, x, c.acc)))
    return RtlExample(
        f"A chain of {c.lanes} multipliers for dense, 2:4 and 1:4 weights.", "", top, verilog(c, top), top,
        testbench(fields, len(lines), top, "sum"), "tb", {"vectors.hex": "\n".join(lines) + "\n"}, family="accel",
        id=f"sparse-{c.lanes}-{c.bits}-{c.acc}",
    )  # fmt: skip
