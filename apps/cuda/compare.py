"""Whether an output is the expected one: tolerances, NaN in the same places, and how far off it is in which element."""

from __future__ import annotations

import numpy as np

from apps.cuda.verdict import Trial

_MANTISSA = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}


def compare(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtypes: dict[str, str], tolerances: dict[str, float],
    *, unwritten: int = 0, shapes: str = "",
) -> Trial:  # fmt: skip
    """One trial over all outputs.

    An element passes when |got − expected| ≤ tolerance + tolerance · |expected|. NaN equals NaN, and an infinity the
    same infinity; neither equals anything else. Integers are exact (tolerance 0).
    """
    passed, relative, ulp, worst, excess = unwritten == 0, 0.0, 0.0, None, -1.0
    for name, want in expected.items():
        tolerance = tolerances[name]
        exact = np.asarray(want, np.float64)
        found = np.asarray(got[name], np.float64).reshape(exact.shape)
        same = (found == exact) | (np.isnan(found) & np.isnan(exact))
        finite = np.isfinite(found) & np.isfinite(exact)
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.where(finite, np.abs(found - exact), np.where(same, 0.0, np.inf))
            allowed = tolerance + tolerance * np.where(np.isfinite(exact), np.abs(exact), 0.0)
            over = np.where(same, -1.0, distance - allowed)
        if over.size == 0:
            continue
        passed &= bool((over <= 0).all())
        norm = float(np.linalg.norm(exact[finite])) if finite.any() else 0.0
        off = float(np.linalg.norm((found - exact)[finite])) if finite.any() else 0.0
        relative = max(relative, off / norm if norm else off)
        ulp = max(ulp, largest_ulp(found[finite], exact[finite], dtypes[name]))
        index = int(np.argmax(over))
        if float(over.flat[index]) > excess:
            excess = float(over.flat[index])
            place = [int(i) for i in np.unravel_index(index, exact.shape)]
            worst = {
                "output": name,
                "index": place,
                "expected": float(exact.flat[index]),
                "got": float(found.flat[index]),
            }
    return Trial(passed, relative, ulp, unwritten, worst, shapes)


def largest_ulp(found: np.ndarray, exact: np.ndarray, dtype: str) -> float:
    """The largest distance in units of the last place that `dtype` has at the expected value."""
    bits = _MANTISSA.get(dtype)
    if bits is None or found.size == 0:
        return 0.0
    smallest = {"float64": -1022, "float16": -14}.get(dtype, -126)
    exponent = np.frexp(np.where(exact == 0, 1e-300, exact))[1] - 1
    unit = np.ldexp(1.0, np.maximum(exponent, smallest) - bits)
    with np.errstate(over="ignore"):
        return float(np.max(np.abs(found - exact) / unit))
