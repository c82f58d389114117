"""A dot product as a loop nest over elements and bit weights, and the transformations that keep its value.

The nest of a multiply-accumulate unit has three loops: over the elements k, over the bit weights w of one operand, and
the reduction of partial products. A `Nest` says in which order they run, where the shift by the bit weight is done, and
in which form the sum is kept; each transformation returns another nest, and `evaluate` computes any of them with
integers, so that equality with numpy is a test and not a belief.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from apps.rtl.accel.encode import booth, sign_magnitude
from core.errors import ConfigError


@dataclass(frozen=True)
class Nest:
    """A loop nest for sum_k a[k] · b[k].

    Args:
        order: outer loop first; "k" elements, "w" bit weights.
        digits: how `a` is taken apart: bits, or recoded digits.
        shift: "inner" shifts every partial product, "outer" shifts one sum a bit weight.
        sum: "propagate" adds with carries, "save" keeps sum and carry words apart until the end.
        skip: leave out partial products whose digit is zero.
        shared: the digits are made once outside the array, and not in every unit.
    """

    order: tuple[str, str] = ("k", "w")
    digits: Literal["bits", "booth", "sign_magnitude"] = "bits"
    shift: Literal["inner", "outer"] = "inner"
    sum: Literal["propagate", "save"] = "propagate"
    skip: bool = False
    shared: bool = False


def carry_save(nest: Nest) -> Nest:
    """Keep the sum as two words and add them once at the end (the first optimisation)."""
    return replace(nest, sum="save")


def reduce_same_weight(nest: Nest) -> Nest:
    """Reduce all partial products of one bit weight first, then shift once (the second)."""
    return replace(nest, order=("w", "k"), shift="outer")


def encode(nest: Nest, digits: Literal["booth", "sign_magnitude"] = "sign_magnitude") -> Nest:
    """Recode one operand and leave out zero digits (the third)."""
    return replace(nest, digits=digits, skip=True)


def share_encoder(nest: Nest) -> Nest:
    """Recode outside of the array (the fourth). Raises `ConfigError` where nothing is recoded."""
    if nest.digits == "bits":
        raise ConfigError("there is no encoder to share", hint="encode first")
    return replace(nest, shared=True)


@dataclass
class Counted:
    """What a nest does: its value, partial products added, shifts, carry-propagating additions, and recodings."""

    value: int
    products: int = 0
    shifts: int = 0
    additions: int = 0
    recodings: int = 0


def evaluate(nest: Nest, a: np.ndarray, b: np.ndarray, bits: int = 8, units: int = 1) -> Counted:
    """Run the nest on vectors (K,) of signed `bits`-bit integers, counting what it does.

    Args:
        units: how many units share the operand `a`; without a shared encoder each of them recodes it.
    """
    parts, base = _digits(nest, a, bits)
    found = Counted(0, recodings=0 if nest.digits == "bits" else len(a) * (1 if nest.shared else units))
    total, carry = 0, 0
    mask = (1 << 64) - 1

    def add(term: int) -> None:
        nonlocal total, carry
        if nest.sum == "propagate":
            total += term
            found.additions += 1
            return
        term &= mask
        total, carry = total ^ carry ^ term, ((total & carry | total & term | carry & term) << 1) & mask

    for outer in range(len(a) if nest.order[0] == "k" else parts.shape[1]):
        inner_total = 0
        for inner in range(parts.shape[1] if nest.order[0] == "k" else len(a)):
            k, w = (outer, inner) if nest.order[0] == "k" else (inner, outer)
            digit = int(parts[k, w])
            if nest.skip and digit == 0:
                continue
            found.products += 1
            product = digit * int(b[k])
            if nest.shift == "inner":
                found.shifts += 1
                add(product * base**w)
            else:
                inner_total += product
        if nest.shift == "outer":
            weight = base**outer
            found.shifts += 1
            add(inner_total * weight)
    if nest.sum == "save":
        found.additions += 1
        total = (total + carry) & mask
        total = total - (1 << 64) if total >> 63 else total
    found.value = total
    return found


def _digits(nest: Nest, a: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    if nest.digits == "booth":
        return booth(a, bits), 4
    if nest.digits == "sign_magnitude":
        return sign_magnitude(a, bits), 4
    unsigned = np.asarray(a) & ((1 << bits) - 1)
    planes = np.stack([unsigned >> i & 1 for i in range(bits)], 1)
    planes[:, -1] *= -1
    return planes, 2
