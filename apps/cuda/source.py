"""CUDA C++ as tokens: finding the code in an answer, the kernels in the code, and rewriting for compiler and emulator.

Nothing here understands C++; it splits text into tokens exactly enough to find declarations, and keeps line numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LARGEST = 1 << 16
"""Characters of the longest source that is looked at."""

Kind = Literal["name", "number", "text", "directive", "mark"]

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<directive>(?<![^\n])[ \t]*\#(?:[^\n\\]|\\\n|\\[^\n])*)
    |(?P<text>(?:u8|[uUL])?R"(?P<fence>[^()\\\s]{0,16})\(.*?\)(?P=fence)"|(?:u8|[uUL])?"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)+')
    |(?P<name>[A-Za-z_]\w*)
    |(?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)
    |(?P<mark><<<|>>>|::|->|\#\#|.)""",
    re.X | re.S,
)


@dataclass(frozen=True)
class Token:
    """A piece of source: its kind, its text, where it begins, and its line, counted from 1."""

    kind: Kind
    text: str
    start: int
    line: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokens(code: str) -> list[Token]:
    """All tokens but spaces and comments."""
    found, line = [], 1
    for match in _TOKEN.finditer(code):
        kind = match.lastgroup
        text = match[0]
        if kind == "fence":
            kind = "text"
        if kind == "directive":
            lead = len(text) - len(text.lstrip())
            found.append(Token("directive", text[lead:], match.start() + lead, line))
        elif kind != "space":
            found.append(Token(kind, text, match.start(), line))  # type: ignore[arg-type]
        line += text.count("\n")
    return found


_FENCE = re.compile(r"```[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n(?P<body>.*?)(?:^```|\Z)", re.S | re.M)
_CODE = ("cuda", "cu", "cpp", "c++", "c", "cxx", "")
_PLAN = re.compile(r"/\*\s*launch\b(?P<plan>.*?)\*/", re.S)


def extract(answer: str) -> tuple[str, str]:
    """(code, launch plan) of an answer, each empty where there is none.

    The code is the first fenced block of C++, else the whole answer. The plan is the first fenced block of JSON, else
    the first comment `/* launch {…} */`.
    """
    blocks = [(m["language"].lower(), m["body"]) for m in _FENCE.finditer(answer)]
    plan = next((body for language, body in blocks if language == "json"), "")
    code = next((body for language, body in blocks if language in _CODE and "__global__" in body), "")
    if not code and "__global__" in answer and not blocks:
        code = answer
    inline = _PLAN.search(code)
    return code.strip("\n") + "\n" if code.strip() else "", (plan or (inline["plan"] if inline else "")).strip()


def candidate(code: str, plan: str) -> str:
    """One text of code and plan, which `extract` takes apart again."""
    return f"/* launch\n{plan.strip()}\n*/\n{code.strip()}\n"


@dataclass(frozen=True)
class Param:
    """A parameter of a kernel. `type` is without qualifiers and pointers: "float" of `const float* __restrict__ x`."""

    name: str
    type: str
    pointer: bool = False
    const: bool = False
    text: str = ""


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function that can be launched by its name."""

    name: str
    params: tuple[Param, ...]
    line: int
    template: bool = False


_QUALIFIERS = {"const", "__restrict__", "__restrict", "volatile", "__grid_constant__", "restrict"}


def kernels(code: str) -> dict[str, Kernel]:
    """The kernels that `code` defines or declares, by name."""
    found: dict[str, Kernel] = {}
    stream = tokens(code)
    for index, token in enumerate(stream):
        if token.text != "__global__":
            continue
        at = index + 1
        name = None
        while at < len(stream) and stream[at].text not in ("{", ";"):
            if stream[at].text == "(":
                close = _closing(stream, at)
                before = stream[at - 1]
                if before.text not in ("__launch_bounds__", "__cluster_dims__", "__align__") and before.kind == "name":
                    name = before
                    break
                at = close
            at += 1
        if name is None:
            continue
        inside = stream[at + 1 : _closing(stream, at)]
        params = tuple(p for p in map(_param, _split(inside, code)) if p is not None)
        start = _declaration(stream, index)
        found.setdefault(name.text, Kernel(name.text, params, token.line, stream[start].text == "template"))
    return found


def _closing(stream: list[Token], at: int) -> int:
    pairs = {"(": ")", "[": "]", "{": "}"}
    close, depth = pairs[stream[at].text], 0
    for index in range(at, len(stream)):
        if stream[index].text == stream[at].text:
            depth += 1
        elif stream[index].text == close:
            depth -= 1
            if depth == 0:
                return index
    return len(stream)


def _split(inside: list[Token], code: str) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in inside:
        depth += (token.text in "([{<") - (token.text in ")]}>")
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def _param(part: list[Token]) -> Param | None:
    names = [t for t in part if t.kind == "name"]
    if not names or [t.text for t in part] == ["void"]:
        return None
    pointer = any(t.text in ("*", "[") for t in part)
    plain = [t.text for t in names if t.text not in _QUALIFIERS]
    words, name = (plain[:-1], plain[-1]) if len(plain) > 1 else (plain, "")
    star = next((i for i, t in enumerate(part) if t.text == "*"), len(part))
    const = any(t.text == "const" for t in part[:star])
    text = " ".join(t.text for t in part if t is not names[-1] and t.text not in ("__restrict__", "__restrict"))
    return Param(name, " ".join(words), pointer, const, text.replace(" [ ]", " *"))


def _declaration(stream: list[Token], index: int) -> int:
    """Where the declaration that holds token `index` begins."""
    at = index
    while at > 0 and stream[at - 1].text not in (";", "}", "{") and stream[at - 1].kind != "directive":
        at -= 1
    return at


def with_c_linkage(code: str) -> str:
    """The code with every kernel `extern "C"`, so that it can be found by its plain name; lines stay where they are."""
    stream = tokens(code)
    places = []
    for index, token in enumerate(stream):
        if token.text == "__global__":
            start = _declaration(stream, index)
            if stream[start].text not in ("template", "extern"):
                places.append((stream[start].start, stream[start].end if stream[start].text == "static" else None))
    for place, static in sorted(set(places), reverse=True):
        code = f'{code[:place]}extern "C" {code[static or place :]}'
    return code


def for_emulator(code: str) -> str:
    """The code as plain C++ for `emulation/simt.h`: no includes, no linkage, shared variables from the arena.

    Lines stay where they are. `__shared__ float a[4][5];` becomes a reference into the block's shared memory and
    `extern __shared__ T s[];` a pointer to its dynamic part.
    """
    stream = tokens(code)
    edits: list[tuple[int, int, str]] = []
    number = 0
    for index, token in enumerate(stream):
        if token.kind == "directive" and re.match(r"#\s*include\b", token.text):
            edits.append((token.start, token.end, ""))
        elif token.text == "extern" and index + 1 < len(stream) and stream[index + 1].text == '"C"':
            edits.append((token.start, stream[index + 1].end, ""))
        elif token.text == "__shared__":
            first = _declaration(stream, index)
            last = next((i for i in range(index, len(stream)) if stream[i].text in (";", "=")), len(stream) - 1)
            text = _shared(stream[first:last], number)
            number += 1
            gap = code[stream[first].start : stream[last].start].count("\n")
            edits.append((stream[first].start, stream[last].start, text + "\n" * gap))
    for start, end, text in sorted(edits, reverse=True):
        code = code[:start] + text + code[end:]
    return code


def _shared(part: list[Token], number: int) -> str:
    words = [t.text for t in part]
    dynamic = "extern" in words
    kept: list[str] = []
    at = 0
    while at < len(words):
        if words[at] in ("__align__", "alignas"):
            at += 1
            depth = 0
            while at < len(words):
                depth += (words[at] == "(") - (words[at] == ")")
                at += 1
                if depth == 0:
                    break
            continue
        if words[at] not in ("extern", "__shared__", "static"):
            kept.append(words[at])
        at += 1
    groups = _declarators(kept)
    base = " ".join(groups[0][0])
    made = []
    for place, (_, name, dims) in enumerate(groups):
        if dynamic:
            made.append(f"{base}* const {name} = ({base}*)simt::dynamic_shared(sizeof({base}))")
        else:
            made.append(
                f"{base} (&{name}) {dims} = *({base} (*) {dims})simt::shared<{base}{dims}>({number * 64 + place})"
            )
    return "; ".join(made)


def _declarators(words: list[str]) -> list[tuple[list[str], str, str]]:
    """(type words, name, dimensions) of each variable of one declaration."""
    parts: list[list[str]] = [[]]
    depth = 0
    for word in words:
        depth += (word in "([{<") - (word in ")]}>")
        if word == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(word)
    found: list[tuple[list[str], str, str]] = []
    base: list[str] = []
    for index, part in enumerate(parts):
        bracket = part.index("[") if "[" in part else len(part)
        name = part[bracket - 1] if bracket else ""
        if index == 0:
            base = part[: bracket - 1]
        found.append((base, name, "".join(part[bracket:])))
    return found
