"""Decimal numbers between bounds, as pieces of an automaton.

Integers between two bounds are split where their digits stop being shared: 37 to 412 is 37-39, 40-99, 100-399, 400-409
and 410-412. Fractions between bounds are integers counted in the last decimal place that separates the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from core.inference.constrained.automaton import Builder, Piece
from core.inference.constrained.schema_parts import SchemaError

DIGITS = 15
"""Digits before the point of a number without bounds: what a double holds exactly."""
WIDEST = 19
"""Digits of a number with bounds: 64-bit integers have no more."""
PLACES = 6
MULTIPLES = 4096


def bounded(b: Builder, kind: str, schema: Mapping[str, Any], at: str) -> Piece:
    """An integer or a number between the bounds of a schema. Raises `SchemaError` for bounds that are none."""
    low, high = schema.get("minimum"), schema.get("maximum")
    open_low = open_high = False
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        given = schema.get(word)
        infinite = isinstance(given, float) and not math.isfinite(given)
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float)) or infinite):
            raise SchemaError("a bound is a number", where=f"{at}/{word}")
    if above is not None and (low is None or above >= low):
        low, open_low = above, True
    if below is not None and (high is None or below <= high):
        high, open_high = below, True
    step = schema.get("multipleOf")
    first, last = scaled(low, high, open_low, open_high, 0)
    if step is not None:
        whole = isinstance(step, int) or float(step).is_integer()
        found = multiples(first, last, int(step)) if whole and step >= 1 else None
        if found is None or len(found) > MULTIPLES:
            raise SchemaError(
                "multipleOf needs a whole step and bounds",
                where=f"{at}/multipleOf",
                hint="give minimum and maximum",
            )
        return b.texts(map(str, found))
    if kind == "integer":
        return integer(b, first, last)
    return number(b, low, high, open_low, open_high)


def digit(b: Builder, low: int = 0, high: int = 9) -> Piece:
    return b.byte(48 + low, 48 + high)


def digits(b: Builder, least: int, most: int) -> Piece:
    """From `least` to `most` digits."""
    piece = b.nothing()
    for _ in range(most - least):
        piece = b.optional(b.sequence([digit(b), piece]))
    return b.sequence([*(digit(b) for _ in range(least)), piece])


def natural(b: Builder) -> Piece:
    """0, or digits that do not begin with 0."""
    return b.either([b.text("0"), b.sequence([digit(b, 1), digits(b, 0, DIGITS - 1)])])


def integer(b: Builder, low: int | None = None, high: int | None = None) -> Piece:
    """An integer of [low, high]; None is no bound. Impossible when low > high."""
    if low is None and high is None:
        return b.sequence([b.optional(b.text("-")), natural(b)])
    largest, widest = 10**DIGITS - 1, 10**WIDEST
    low, high = -largest if low is None else max(low, -widest), largest if high is None else min(high, widest)
    if low > high:
        return None
    parts = []
    if low < 0:
        parts.append(b.sequence([b.text("-"), _between(b, max(1, -high), -low)]))
    if high >= 0:
        parts.append(_between(b, max(0, low), high))
    return b.either(parts)


def _between(b: Builder, low: int, high: int) -> Piece:
    """Natural numbers of [low, high] without leading zeros."""
    if low > high:
        return None
    parts = []
    for size in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (size - 1) if size > 1 else 0)
        parts.append(_same_length(b, str(first), str(min(high, 10**size - 1))))
    return b.either(parts)


def _same_length(b: Builder, low: str, high: str) -> Piece:
    """Texts of digits between two of the same length."""
    if not low:
        return b.nothing()
    if set(low) == {"0"} and set(high) == {"9"}:
        return digits(b, len(low), len(low))
    first, last = int(low[0]), int(high[0])
    if first == last:
        return b.sequence([digit(b, first, first), _same_length(b, low[1:], high[1:])])
    rest = len(low) - 1
    parts = [
        b.sequence([digit(b, first, first), _same_length(b, low[1:], "9" * rest)]),
        b.sequence([digit(b, last, last), _same_length(b, "0" * rest, high[1:])]),
    ]
    if last - first > 1:
        parts.append(b.sequence([digit(b, first + 1, last - 1), digits(b, rest, rest)]))
    return b.either(parts)


def number(b: Builder, low: float | None, high: float | None, open_low: bool, open_high: bool) -> Piece:
    """A decimal number between bounds, without an exponent; `open_` leaves the bound itself out."""
    if low is None and high is None:
        fraction = b.sequence([b.text("."), digits(b, 1, PLACES)])
        return b.sequence([b.optional(b.text("-")), natural(b), b.optional(fraction)])
    whole = integer(b, *scaled(low, high, open_low, open_high, 0))
    for places in range(1, 16):
        first, last = scaled(low, high, open_low, open_high, places)
        if first is None or last is None or last - first >= 10 or (whole is None and last >= first):
            return b.either([whole, _fixed(b, first, last, places)])
    return whole


def scaled(low: float | None, high: float | None, open_low: bool, open_high: bool, places: int) -> tuple:
    """The bounds counted in units of the last place."""
    first = last = None
    if low is not None:
        exact = Decimal(repr(low)).scaleb(places)
        first = int(exact.to_integral_value(ROUND_CEILING))
        first += open_low and first == exact
    if high is not None:
        exact = Decimal(repr(high)).scaleb(places)
        last = int(exact.to_integral_value(ROUND_FLOOR))
        last -= open_high and last == exact
    return first, last


def _fixed(b: Builder, first: int | None, last: int | None, places: int) -> Piece:
    """Numbers with exactly `places` decimals whose units are in [first, last]."""
    unit = 10**places
    limit = 10**DIGITS * unit - 1
    first, last = -limit if first is None else max(first, -limit), limit if last is None else min(last, limit)
    parts = []
    for sign, low, high in (("-", max(1, -last), -first), ("", max(0, first), last)):
        if low > high:
            continue
        a, z = low // unit, high // unit
        ends = []
        if a == z:
            ends.append((a, a, low % unit, high % unit))
        else:
            ends.append((a, a, low % unit, unit - 1))
            ends.append((z, z, 0, high % unit))
            if z - a > 1:
                ends.append((a + 1, z - 1, 0, unit - 1))
        for whole_low, whole_high, part_low, part_high in ends:
            decimals = _same_length(b, f"{part_low:0{places}d}", f"{part_high:0{places}d}")
            parts.append(b.sequence([b.text(sign), _between(b, whole_low, whole_high), b.text("."), decimals]))
    return b.either(parts)


def multiples(low: int | None, high: int | None, step: int) -> range | None:
    """The multiples of `step` between bounds; None when a bound is missing."""
    if low is None or high is None:
        return None
    return range(math.ceil(low / step) * step, high + 1, step)
