"""Verilog as tokens: taking code out of an answer, renaming, and what a candidate may not say.

A lexer is enough for all of this, and it sees what a parser would hide: text in a branch that no compiler takes. It
knows nothing of simulators.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from core.execution.policy import half_character

LARGEST = 64 * 1024
_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/|\(\*(?!\s*\)).*?\*\))
    |(?P<string>"(?:\\.|[^"\\\n])*")
    |(?P<escaped>\\\S+)
    |(?P<directive>`\w+)
    |(?P<system>\$\w+)
    |(?P<number>(?:\d[\d_]*)?\s*'[sS]?[bodhBODH]\s*[0-9a-fA-FxXzZ?_]+|'[01xzXZ]|\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)
    |(?P<name>[A-Za-z_][\w$]*)
    |(?P<other><<<=|>>>=|===|!==|==\?|!=\?|<<<|>>>|<<=|>>=|<=|>=|==|!=|&&|\|\||<<|>>|~&|~\||~\^|\^~|\*\*|\+:|-:|::|\#\#
        |\|->|\|=>|->|\+\+|--|\+=|-=|\*=|/=|&=|\|=|\^=|.)""",
    re.VERBOSE | re.DOTALL,
)
ALLOWED_SYSTEM = frozenset(
    "$signed $unsigned $clog2 $bits $size $high $low $left $right $increment $dimensions $countones $onehot $onehot0 "
    "$isunknown $cast".split()
)
ALLOWED_DIRECTIVES = frozenset(
    "`timescale `default_nettype `define `undef `ifdef `ifndef `else `elsif `endif `resetall `begin_keywords "
    "`end_keywords `celldefine `endcelldefine `line `pragma".split()
)
_FORBIDDEN_WORDS = {
    "bind": "binds into other modules", "force": "forces signals", "release": "releases signals",
    "import": "imports", "export": "exports", "config": "chooses other modules", "program": "is a program",
    "alias": "aliases nets", "primitive": "", "specify": "",
}  # fmt: skip
_HARMLESS = {"primitive", "specify"}
_IMPORTS = ("import", "export")


class Token(NamedTuple):
    """A piece of source: its kind (a group of the lexer), text and line."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True)
class Violation:
    """Something a candidate may not contain."""

    what: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


def tokens(code: str, space: bool = False) -> Iterator[Token]:
    """The tokens of `code`, with white space and comments where asked."""
    found = _lexed(code)
    return iter(found) if space else (token for token in found if token.kind != "space")


@functools.lru_cache(maxsize=16)
def _lexed(code: str) -> tuple[Token, ...]:
    """All tokens; remembered, because a verdict looks at the same few texts many times."""
    found, line = [], 1
    for match in _TOKEN.finditer(code):
        text = match.group()
        found.append(Token(match.lastgroup or "other", text, line))
        line += text.count("\n")
    return tuple(found)


def renamed(code: str, names: Mapping[str, str]) -> str:
    """`code` with identifiers replaced, comments and strings untouched."""
    return "".join(
        names.get(token.text, token.text) if token.kind == "name" else token.text for token in tokens(code, space=True)
    )


def module_names(code: str) -> list[str]:
    """Names of the modules that `code` defines, in order."""
    found, previous = [], ""
    for token in tokens(code):
        if previous in ("module", "macromodule", "interface", "program") and token.kind in ("name", "escaped"):
            if token.text in ("automatic", "static"):
                continue
            found.append(token.text)
        previous = token.text if token.kind == "name" else ""
    return found


def instances(code: str) -> dict[str, set[str]]:
    """Module name → the modules it instantiates, of those that `code` defines or mentions as `Type name (`."""
    found: dict[str, set[str]] = {}
    inside, last = None, [Token("other", "", 0)] * 3
    for token in tokens(code):
        if last[-1].text in ("module", "macromodule") and last[-1].kind == "name" and token.kind == "name":
            inside = token.text
            found[inside] = set()
        elif token.text == "endmodule":
            inside = None
        elif inside and token.text in ("(", "#") and last[-1].kind == "name":
            kind = last[-2] if token.text == "(" else last[-1]
            if kind.kind == "name":
                found[inside].add(kind.text)
        last = [*last[1:], token]
    return found


def top_of(code: str) -> str | None:
    """The module that no other one instantiates; the last of them, or None without modules."""
    tree = instances(code)
    used = set().union(*tree.values()) if tree else set()
    roots = [name for name in tree if name not in used]
    return roots[-1] if roots else None


_ENDS = re.compile(r"(?:;|\bend\w*)[ \t]*(?://.*|/\*.*)?$", re.MULTILINE)
"""A line on which a statement or a block ends."""


def extract(answer: str, header: str = "") -> str:
    """The Verilog in a model's answer.

    Fenced blocks if any has a module in it, else everything from the first line of code to the last `endmodule`. An
    answer that only continues the body gets `header` before it. Empty when there is no code: prose continues nothing.
    """
    text = answer.replace("\r\n", "\n")
    blocks = re.findall(r"```[\w+-]*[ \t]*\n(.*?)(?:\n```|\Z)", text, re.DOTALL)
    with_module = [block for block in blocks if re.search(r"\bmodule\b", block)]
    if with_module:
        return "\n".join(with_module).strip("\n") + "\n"
    if blocks and header:
        text = max(blocks, key=len)
    start = re.search(r"^[ \t]*(?:module|macromodule|package|typedef|import|`[a-z]\w*)\b", text, re.MULTILINE)
    end = text.rfind("endmodule")
    if start and not re.search(r"^[ \t]*(?:macro)?module\b", text, re.MULTILINE):
        start = None
    if start and end > start.start():
        return text[start.start() : end + len("endmodule")].strip("\n") + "\n"
    if start:
        return text[start.start() :].strip("\n") + "\n"
    body = text if end < 0 else text[: end + len("endmodule")]
    if not header or not _ENDS.search(body):
        return ""
    closing = "" if end >= 0 else "\nendmodule"
    return f"{header.rstrip()}\n{body.strip(chr(10))}{closing}\n"


def violations(code: str, allow: frozenset[str] = frozenset(), macros: frozenset[str] = frozenset()) -> list[Violation]:
    """What a candidate may not contain, with lines.

    Args:
        allow: system functions that the task permits besides the standard ones, e.g. `$random`.
        macros: the testbench's own macros, which must not be redefined.
    """
    found = []
    defined = {b.text for a, b in _pairs(code) if a.text in ("`define",) and b.kind == "name"}
    previous: list[Token] = []
    for token in tokens(code):
        before = previous[-1].text if previous else ""
        if token.kind == "system" and token.text not in ALLOWED_SYSTEM | allow:
            found.append(Violation(f"the system task {token.text} is not allowed", token.line))
        elif token.kind == "directive":
            if token.text not in ALLOWED_DIRECTIVES and token.text[1:] not in defined:
                found.append(Violation(f"the directive {token.text} is not allowed", token.line))
        elif token.text == "`" or (token.text == "$" and before not in ("[", ":")):
            found.append(Violation("a name is put together out of pieces", token.line))
        elif token.kind == "name" and before in ("`define", "`undef") and token.text in macros:
            found.append(Violation(f"redefines the testbench's macro {token.text}", token.line))
        elif token.kind == "name" and token.text in _FORBIDDEN_WORDS and token.text not in _HARMLESS:
            if before not in (".", "`define"):
                found.append(Violation(f"'{token.text}' {_FORBIDDEN_WORDS[token.text]}", token.line))
        elif token.kind == "name" and before == "." and len(previous) > 1 and previous[-2].text == "$root":
            found.append(Violation("names the root of the design", token.line))
        previous = [*previous[-2:], token]
    found += _upward(code)
    return sorted(found, key=lambda v: v.line)


def _pairs(code: str) -> Iterator[tuple[Token, Token]]:
    previous = None
    for token in tokens(code):
        if previous is not None:
            yield previous, token
        previous = token


def _upward(code: str) -> list[Violation]:
    """References `a.b` whose first part nothing in the code declares: they reach out of the candidate."""
    all_tokens = list(tokens(code))
    used = []
    for index in range(1, len(all_tokens) - 1):
        dot = all_tokens[index]
        if dot.text != "." or all_tokens[index + 1].kind not in ("name", "escaped"):
            continue
        at = index - 1
        while at >= 0 and all_tokens[at].text == "]":
            depth = 0
            while at >= 0:
                depth += (all_tokens[at].text == "]") - (all_tokens[at].text == "[")
                at -= 1
                if depth == 0:
                    break
        if at >= 0 and all_tokens[at].kind in ("name", "escaped"):
            first = at
            while first >= 2 and all_tokens[first - 1].text == "." and all_tokens[first - 2].kind == "name":
                first -= 2
            if first == 0 or all_tokens[first - 1].text != ".":
                used.append(all_tokens[first])
    if not used:
        return []
    declared = _declared(all_tokens)
    return [
        Violation(f"reaches out of the module through '{token.text}'", token.line)
        for token in used
        if token.text not in declared
    ]


def _declared(all_tokens: list[Token]) -> set[str]:
    """Names that the code gives to something itself: after a type or net keyword, a label, or `Type name (`."""
    found: set[str] = set()
    modules = {b.text for a, b in zip(all_tokens, all_tokens[1:]) if a.text == "module"}
    for index, token in enumerate(all_tokens[:-1]):
        if token.kind not in ("name", "escaped"):
            continue
        following = all_tokens[index + 1].text
        before = all_tokens[index - 1] if index else Token("other", "", 0)
        if before.text == ":" or before.text in ("begin", "genvar"):
            found.add(token.text)
        elif before.kind == "name" and before.text not in _EXPRESSION_WORDS and following in ";,=[()":
            found.add(token.text)
        elif before.text in ("]", ",", ")", "}") and following in ";,=[(":
            found.add(token.text)
    return found - modules


_EXPRESSION_WORDS = frozenset(
    "assign if else case casex casez begin end return posedge negedge or and not always always_ff always_comb initial "
    "for while repeat wait forever".split()
)


def problems_of(code: str) -> str | None:
    """Why `code` cannot even be looked at: empty, too large, or not ASCII; None when it can."""
    if not code.strip():
        return "the answer holds no module"
    if len(code) > LARGEST:
        return f"the code has {len(code)} characters, the limit is {LARGEST}"
    if (half := half_character(code)) is not None:
        return f"line {code[: code.index(half)].count(chr(10)) + 1} holds {half!r}, which is half a character"
    for token in tokens(code):
        bad = next((c for c in token.text if ord(c) > 126 or (ord(c) < 32 and c not in "\n\t\r\f")), None)
        if bad is not None:
            return f"line {token.line} holds the character {bad!r}, which is not ASCII"
    return None
