"""Regular expressions of a schema's `pattern` as pieces: what a regular language can say.

Read with Python's own parser, whose syntax agrees with ECMA 262 on what is supported here: literals, classes, groups,
alternatives, repetition, and anchors at the ends. Without an anchor anything may stand before or behind, as JSON Schema
has it. The quote and the backslash are written escaped. Look-around and back-references are refused.
"""

from __future__ import annotations

import re
import re._parser as parser  # type: ignore[import-not-found]
from typing import Any

from core.inference.constrained.automaton import Builder, Piece
from core.inference.constrained.schema_parts import SchemaError, outside, utf8

LAST_ASCII, LAST = 0x7E, 0x10FFFF
CATEGORIES = {
    "CATEGORY_DIGIT": [(48, 57)],
    "CATEGORY_WORD": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "CATEGORY_SPACE": [(32, 32)],
}
MOST = 4096


def pattern_piece(b: Builder, pattern: Any, at: str, quote: str = '"') -> Piece:
    """The inside of a string that the pattern matches, between such quotes. Raises `SchemaError` if not regular."""
    try:
        parsed = list(parser.parse(pattern))
    except (re.error, TypeError) as error:
        raise SchemaError(f"not a regular expression: {error}", where=at) from error
    begins = bool(parsed) and parsed[0] == (parser.AT, parser.AT_BEGINNING)
    ends = bool(parsed) and parsed[-1] == (parser.AT, parser.AT_END)
    body = parsed[begins : len(parsed) - ends]
    made = _sequence(b, body, at, quote)
    before = [] if begins else [_any(b, quote)]
    behind = [] if ends else [_any(b, quote)]
    return b.sequence([*before, made, *behind])


def _any(b: Builder, quote: str) -> Piece:
    return b.repeat(_characters(b, [(32, LAST)], quote))


def _sequence(b: Builder, parts: Any, at: str, quote: str) -> Piece:
    return b.sequence([_part(b, kind, value, at, quote) for kind, value in parts])


def _part(b: Builder, kind: Any, value: Any, at: str, quote: str) -> Piece:
    name = str(kind)
    if name == "LITERAL":
        return _characters(b, [(value, value)], quote)
    if name == "NOT_LITERAL":
        return _characters(b, _outside([(value, value)]), quote)
    if name == "ANY":
        return _characters(b, [(32, LAST)], quote)
    if name == "IN":
        return _characters(b, _class(value, at), quote)
    if name == "BRANCH":
        return b.either([_sequence(b, branch, at, quote) for branch in value[1]])
    if name == "SUBPATTERN":
        return _sequence(b, value[3], at, quote)
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, inner = value
        if least > MOST or (most != parser.MAXREPEAT and most > MOST):
            raise SchemaError(f"more than {MOST} repetitions", where=at)
        head = [_sequence(b, inner, at, quote) for _ in range(least)]
        if most == parser.MAXREPEAT:
            return b.sequence([*head, b.repeat(_sequence(b, inner, at, quote))])
        tail = b.nothing()
        for _ in range(most - least):
            tail = b.optional(b.sequence([_sequence(b, inner, at, quote), tail]))
        return b.sequence([*head, tail])
    raise SchemaError(f"'{name.lower()}' in a pattern is not supported", where=at)


def _class(items: Any, at: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    negated = False
    for kind, value in items:
        name = str(kind)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            found.append((value, value))
        elif name == "RANGE":
            found.append(value)
        elif name == "CATEGORY" and str(value) in CATEGORIES:
            found += CATEGORIES[str(value)]
        elif name == "CATEGORY" and str(value).replace("NOT_", "") in CATEGORIES:
            found += _outside(CATEGORIES[str(value).replace("NOT_", "")])
        else:
            raise SchemaError(f"'{name.lower()}' in a class is not supported", where=at)
    return _outside(found) if negated else found


def _outside(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], 32
    for low, high in sorted(ranges):
        if low > at:
            found.append((at, low - 1))
        at = max(at, high + 1)
    return [*found, (at, LAST)] if at <= LAST else found


def _characters(b: Builder, ranges: list[tuple[int, int]], quote: str) -> Piece:
    """One character of the ranges, as a string holds it; of those beyond ASCII all or single ones."""
    escaped = (ord(quote), 0x5C)
    plain: list[tuple[int, int]] = []
    pieces: list[Piece] = []
    for low, high in ranges:
        plain += outside(max(low, 32), min(high, LAST_ASCII), escaped)
        pieces += [b.text("\\" + chr(c)) for c in escaped if low <= c <= high]
        if high == LAST:
            pieces.append(utf8(b))
        elif high > LAST_ASCII:
            pieces += [b.text(chr(c)) for c in range(max(low, 0xA0), min(high, low + MOST) + 1)]
    if plain:
        pieces.append(b.bytes_of(plain))
    return b.either(pieces)
