"""Which bug it is, from the text: pragmas by what they say, logic by what changed against the original.

Pragma bugs are seen in the faulty code alone. Logic bugs need the original, as a code review has it. The rules are a
baseline for models and an aid for people; they do not run anything.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

_PRAGMA = re.compile(r"#\s*pragma\s+HLS\s+(\w+)([^\n#]*)", re.IGNORECASE)
_TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\w+|<<=?|>>=?|[-+*/<>=!&|^]=|&&|\|\||\+\+|--|->|\S", re.DOTALL)
_CASTS = {"int", "short", "long", "char", "unsigned", "signed", "float", "double"}


@dataclass(frozen=True)
class Finding:
    """A suspected bug: its type, its line from 1, and the reason."""

    kind: str
    line: int
    why: str


def pragma_findings(code: str) -> list[Finding]:
    """Bugs that the pragmas of `code` show."""
    found = []
    for match in _PRAGMA.finditer(code):
        kind, why = _pragma_kind(match[1].lower(), match[2].lower(), code)
        if kind:
            found.append(Finding(kind, code.count("\n", 0, match.start()) + 1, why))
    return found


def _pragma_kind(directive: str, rest: str, code: str) -> tuple[str, str]:
    if directive == "unroll":
        return "ILNU", "a loop is unrolled by a pragma"
    if directive == "dataflow":
        return "DFP", "dataflow outside a top-level region"
    if directive == "pipeline":
        return "MLP", "a loop is pipelined by a pragma"
    if directive == "array_partition":
        return _partition(rest, code)
    if directive == "interface":
        if "m_axi" in rest:
            return "RAMB", "memory bundle on a port"
        if "bram" in rest or "ap_memory" in rest:
            return "SMA", "memory interface on a port"
        if "fifo" in rest or "burst" in rest or "axis" in rest:
            return "IDAP", "streaming interface on a port"
        if "ap_none" in rest or "s_axilite" in rest or "ap_vld" in rest or "scalar" in rest:
            return "AMS", "scalar interface on a port"
    return "", ""


def _partition(rest: str, code: str) -> tuple[str, str]:
    name, dim = re.search(r"variable\s*=\s*(\w+)", rest), re.search(r"dim\s*=\s*(\d+)", rest)
    if re.search(r"factor\s*=\s*\d+", rest):
        return "FND", "a partition factor that need not divide the size"
    if dim and name and int(dim[1]) > _rank(name[1], code):
        return "DID", f"dimension {dim[1]} of {name[1]} does not exist"
    if re.search(r"type\s*=\s*\w+", rest):
        return "APT", "a type of partition is forced"
    return ("DID", "a dimension is named") if dim else ("APT", "a type of partition is forced")


def _rank(name: str, code: str) -> int:
    """The most dimensions that an array of this name is seen with."""
    found = re.findall(rf"\b{re.escape(name)}\b((?:\s*\[[^\]]*\])*)", code, re.IGNORECASE)
    polybench = [int(n) for n in re.findall(rf"POLYBENCH_(\d)D\s*\(\s*{re.escape(name)}\b", code, re.IGNORECASE)]
    return max([part.count("[") for part in found] + polybench + [1])


def logic_finding(original: str, faulty: str) -> Finding | None:
    """The bug that an edit makes, by the tokens that changed; None when none did."""
    before, after = _tokens(original), _tokens(faulty)
    matcher = difflib.SequenceMatcher(None, [t for t, _ in before], [t for t, _ in after], autojunk=False)
    changes = [op for op in matcher.get_opcodes() if op[0] != "equal"]
    if not changes:
        return None
    gone = [before[i][0] for _, a, b, _, _ in changes for i in range(a, b)]
    came = [after[i][0] for _, _, _, c, d in changes for i in range(c, d)]
    first = changes[0]
    line = after[min(first[3], len(after) - 1)][1] if after else 1
    context = _context(before, first[1])
    kind, why = _logic_kind(gone, came, context, [t for t, _ in before], [t for t, _ in after])
    return Finding(kind, line, why)


def _tokens(code: str) -> list[tuple[str, int]]:
    return [(m.group(), code.count("\n", 0, m.start()) + 1) for m in _TOKEN.finditer(code)]


def _context(tokens: list[tuple[str, int]], at: int) -> str:
    """What surrounds a change: index, loop, declaration or nothing."""
    depth = 0
    for token, _ in reversed(tokens[:at]):
        depth += (token == "]") - (token == "[")
        if depth < 0:
            return "index"
        if token in (";", "{", "}"):
            break
    statement = [t for t, _ in tokens[max(0, at - 14) : at]]
    return "loop" if {"for", "while", "do"} & set(statement) else ""


def _logic_kind(gone: list[str], came: list[str], context: str, before: list[str], after: list[str]) -> tuple[str, str]:
    shifts = {"<<", ">>", "<<=", ">>="}
    if shifts & set(gone + came) or (shifts & set(before) and any(t.isdigit() for t in came) and context != "index"):
        return "SHFT", "a shift changed"
    if any(t.startswith(("//", "/*")) for t in came) or (not came and "=" in gone):
        return "INIT", "an assignment was taken away"
    if "nullptr" in came or "NULL" in came:
        return "INIT", "a pointer is set to nothing"
    if _CASTS & set(came) or ("unsigned" in gone):
        return "USE", "a type changed"
    if came and set(came) <= {"=", "0", "0.0", "0.0f", ","} and "0" in "".join(came):
        return "ZERO", "a value became zero"
    if context == "loop":
        if {"<=", ">=", "true", "1", "--", "++"} & set(came) or len(gone) > len(came):
            return "INF", "the condition or step of a loop changed"
        return "MLU", "a bound of a loop changed"
    if context == "index":
        if {"+", "1", "*", "-"} & set(came):
            return "OOB", "an index grew"
        return "BUF", "an index names another element"
    if set(came) & {"+=", "-=", "-"} and "=" in gone:
        return "USE", "an assignment became another operation"
    names = [t for t in came if t.isidentifier()]
    return ("BUF", "another variable is used") if names else ("MLU", "an expression changed")
