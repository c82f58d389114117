"""How long Verilog becomes when its macros are expanded, without expanding them.

Forty lines of macros that use each other twice double forty times. So lengths are added up from the bodies: one is a
constant and a factor, a + b·n tokens for arguments of n tokens. Where a name is defined twice the longer counts, and
conditions count as taken, so a length is never too small. A macro that uses itself is endless.
"""

from __future__ import annotations

from collections.abc import Sequence

from apps.rtl.source import Token, tokens

ENDLESS = 1 << 60
_DEEPEST = 40
"""Macros in macros, or in their arguments, which nobody writes."""

Length = tuple[int, int]
"""(a, b) of a + b·n."""


def expanded(code: str) -> int:
    """At most so many tokens, `ENDLESS` for what has no end."""
    stream = list(tokens(code, space=True))
    bodies: dict[str, list[tuple[frozenset[str], list[Token]]]] = {}
    rest: list[Token] = []
    at = 0
    while at < len(stream):
        if stream[at].text != "`define":
            rest.append(stream[at])
            at += 1
            continue
        end = _line_end(stream, at)
        name, params, body = _defined(stream[at + 1 : end])
        bodies.setdefault(name, []).append((params, body))
        at = end
    known: dict[str, Length] = {}

    def macro(name: str, depth: int) -> Length:
        if name not in known:
            known[name] = ENDLESS, ENDLESS  # what it is within itself
            found = [length(body, params, depth + 1) for params, body in bodies[name]]
            known[name] = (max(a for a, _ in found), max(b for _, b in found))
        return known[name]

    def length(part: Sequence[Token], params: frozenset[str], depth: int) -> Length:
        if depth > _DEEPEST:
            return ENDLESS, ENDLESS
        a = b = at = 0
        while at < len(part):
            token = part[at]
            at += 1
            if token.kind == "directive" and token.text[1:] in bodies:
                most, factor = macro(token.text[1:], depth)
                end = _arguments_end(part, at)
                inner, grown = length(part[at:end], params, depth + 1)
                a, b, at = a + most + max(1, factor) * inner, b + max(1, factor) * grown, end
            elif token.kind == "name" and token.text in params:
                b += 1
            elif token.kind != "space":
                a += 1
        return min(a, ENDLESS), min(b, ENDLESS)

    return min(ENDLESS, sum(length(rest, frozenset(), 0)))


def _line_end(stream: Sequence[Token], at: int) -> int:
    """Past the line of a definition; a backslash goes on to the next one."""
    while at < len(stream):
        token = stream[at]
        ends = token.kind == "space" and "\n" in token.text and not token.text.startswith("/*")
        if ends and stream[at - 1].text != "\\":
            return at
        at += 1
    return at


def _defined(line: Sequence[Token]) -> tuple[str, frozenset[str], list[Token]]:
    """Name, parameters and body of a definition without its first word."""
    at = next((i for i, token in enumerate(line) if token.kind != "space"), len(line))
    if at == len(line):
        return "", frozenset(), []
    if at + 1 < len(line) and line[at + 1].text == "(":
        end = _arguments_end(line, at + 1)
        params = frozenset(token.text for token in line[at + 1 : end] if token.kind == "name")
        return line[at].text, params, list(line[end:])
    return line[at].text, frozenset(), list(line[at + 1 :])


def _arguments_end(part: Sequence[Token], at: int) -> int:
    """Past the parentheses that open at `at` or after a space; `at` itself where none do."""
    start = at
    while start < len(part) and part[start].kind == "space":
        start += 1
    if start == len(part) or part[start].text != "(":
        return at
    depth = 0
    for index in range(start, len(part)):
        depth += (part[index].text == "(") - (part[index].text == ")")
        if depth == 0:
            return index + 1
    return len(part)
