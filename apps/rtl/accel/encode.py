"""Signed numbers as digits of radix 4, and how many of them are not zero: each one is a partial product to add.

Booth's recoding takes digits from {−2, −1, 0, 1, 2}. Recoding sign and magnitude apart with digits {−1, 0, 1, 2} and
the carry of 3 = 4 − 1 needs fewer. Skipping zero digits is what makes their number matter.
"""

from __future__ import annotations

import numpy as np

DIGITS = {"booth": (-2, -1, 0, 1, 2), "sign_magnitude": (-1, 0, 1, 2)}


def booth(values: np.ndarray, bits: int = 8) -> np.ndarray:
    """Radix-4 Booth digits (..., bits/2) of two's complement numbers, lowest first."""
    values = np.asarray(values)
    unsigned = values & ((1 << bits) - 1)
    padded = unsigned << 1
    digits = []
    for position in range(0, bits, 2):
        window = padded >> position & 7
        digits.append(np.array([0, 1, 1, 2, -2, -1, -1, 0])[window])
    return np.stack(digits, -1)


def sign_magnitude(values: np.ndarray, bits: int = 8) -> np.ndarray:
    """Digits (..., bits/2 + 1) of {−1, 0, 1, 2} of the magnitude, times the sign, lowest first."""
    values = np.asarray(values)
    rest, sign = np.abs(values), np.sign(values)
    digits = []
    for _ in range(bits // 2 + 1):
        digit = rest & 3
        digit = np.where(digit == 3, -1, digit)
        rest = (rest - digit) >> 2
        digits.append(digit * sign)
    return np.stack(digits, -1)


def value(digits: np.ndarray) -> np.ndarray:
    """The numbers that digits (..., n) of radix 4 stand for."""
    return (digits * 4 ** np.arange(digits.shape[-1])).sum(-1)


def average_products(sigma: float, size: int = 128, recoding: str = "sign_magnitude", *, rows: int = 4000,
                     seed: int = 0) -> float:  # fmt: skip
    """Mean number of non-zero digits of an int8 operand drawn from N(0, sigma), over `rows` × `size` of them."""
    draw = np.random.default_rng(seed)
    values = np.clip(np.rint(draw.normal(0, sigma, (rows, size))), -128, 127).astype(np.int64)
    digits = {"booth": booth, "sign_magnitude": sign_magnitude}[recoding](values)
    return float((digits != 0).sum(-1).mean())


def average_products_exact(sigma: float, recoding: str = "sign_magnitude") -> float:
    """The same in closed form: the digits of every int8 value weighted by its probability."""
    from math import erf, sqrt

    values = np.arange(-128, 128)
    edges = np.concatenate([[-np.inf], values[:-1] + 0.5, [np.inf]])
    cdf = np.array(
        [0.0 if e == -np.inf else 1.0 if e == np.inf else 0.5 * (1 + erf(e / sigma / sqrt(2))) for e in edges]
    )
    digits = {"booth": booth, "sign_magnitude": sign_magnitude}[recoding](values)
    return float(((digits != 0).sum(-1) * np.diff(cdf)).sum())
