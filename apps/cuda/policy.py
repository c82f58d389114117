"""What a kernel source may contain.

Candidates are device code and a plan. Everything that would run on the host, live on after a launch, read a clock or
look different to another compiler is refused here, by tokens; what remains is judged by what it computes. Refusals name
the line and what to write instead.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from apps.cuda.source import LARGEST, Token, tokens
from apps.cuda.verdict import Diagnostic
from core.execution.policy import half_character

HEADERS = frozenset(
    "cuda_runtime.h cuda.h cuda_fp16.h cuda_bf16.h device_launch_parameters.h math_constants.h math.h cmath stdint.h "
    "cstdint float.h cfloat limits.h climits stddef.h cstddef mma.h cooperative_groups.h cooperative_groups/reduce.h "
    "cuda_pipeline.h cuda/pipeline cuda/barrier vector_types.h".split()
)
_REFUSED = {
    "__host__": "host functions never run here; write __device__",
    "__managed__": "managed memory outlives a launch; use a scratch buffer of the plan",
    "main": "there is no host program; the plan launches the kernels",
    "malloc": "the device heap outlives a launch; use a scratch buffer of the plan",
    "free": "the device heap outlives a launch; use a scratch buffer of the plan",
    "new": "the device heap outlives a launch; use a scratch buffer of the plan",
    "delete": "the device heap outlives a launch; use a scratch buffer of the plan",
    "printf": "kernels do not print",
    "clock": "kernels do not read clocks", "clock64": "kernels do not read clocks",
    "globaltimer": "kernels do not read clocks", "__globaltimer": "kernels do not read clocks",
    "__nanosleep": "kernels do not wait for clocks",
    "__attribute__": "attributes of the host compiler are not allowed",
    "__declspec": "attributes of the host compiler are not allowed",
    "gnu": "attributes of the host compiler are not allowed",
    "thread_local": "there are no host threads",
    "try": "device code has no exceptions", "catch": "device code has no exceptions",
    "throw": "device code has no exceptions", "typeid": "device code has no type information",
}  # fmt: skip
_PREFIXES = {
    "simt": "names beginning with simt belong to the emulator",
    "SIMT": "names beginning with SIMT belong to the emulator",
    "cuda": "the CUDA runtime cannot be called from here; the plan launches the kernels",
    "cu": "the CUDA driver cannot be called from here; the plan launches the kernels",
}
_DEFINES_REFUSED = frozenset("__global__ __shared__ __host__ asm __asm__ static extern".split())
_UNSUPPORTED = {
    "asm": "inline PTX", "__asm": "inline PTX", "__asm__": "inline PTX", "wmma": "tensor-core instructions",
    "mma": "tensor-core instructions", "cooperative_groups": "cooperative groups", "barrier": "asynchronous barriers",
    "__pipeline_memcpy_async": "asynchronous copies", "pipeline": "asynchronous copies",
    "__nv_fp8_e4m3": "8-bit floating point", "__nv_fp8_e5m2": "8-bit floating point", "surf2Dread": "surfaces",
    "cudaTextureObject_t": "textures",
}  # fmt: skip
_LOW_PRECISION = frozenset(
    "half half2 __half __half2 __nv_bfloat16 nv_bfloat16 __nv_bfloat162 nv_bfloat162 wmma __float2half "
    "__float2bfloat16 __nv_fp8_e4m3 __nv_fp8_e5m2".split()
)
_TYPES_OF_CUDA = re.compile(r"cuda(TextureObject_t|_\w+)|cub$")


def violations(code: str) -> list[Diagnostic]:
    """Everything in the code that is not allowed, in order of its lines."""
    if len(code) > LARGEST:
        return [Diagnostic(0, f"the code has {len(code)} characters; the limit is {LARGEST}")]
    if (half := half_character(code)) is not None:
        return [Diagnostic(code[: code.index(half)].count("\n") + 1, f"{half!r} is half a character")]
    stream = tokens(code)
    found = [*_characters(stream), *_directives(stream), *_names(stream), *_clocks(stream), *_scope(stream)]
    return sorted(set(found), key=lambda d: d.line)


def unsupported(code: str) -> str | None:
    """What of the code the CPU emulator cannot run, or None."""
    names = [t.text for t in tokens(code) if t.kind == "name"]
    inside = [n for t in tokens(code) if t.kind == "directive" for n in re.findall(r"[A-Za-z_]\w*", t.text)]
    return next((_UNSUPPORTED[name] for name in [*names, *inside] if name in _UNSUPPORTED), None)


def flags(code: str, dtypes: Iterable[str]) -> tuple[str, ...]:
    """Remarks that do not refuse the code: lower precision than the tensors have, inline PTX."""
    names = {t.text for t in tokens(code) if t.kind == "name"}
    low = {"float16", "bfloat16"} & set(dtypes)
    found = []
    if names & _LOW_PRECISION and not low or re.search(r"\btf32\b|precision::tf32", code):
        found.append("precision_downgrade")
    if names & {"asm", "__asm__", "__asm"}:
        found.append("inline_ptx")
    return tuple(found)


def _characters(stream: list[Token]) -> Iterator[Diagnostic]:
    for token in stream:
        if token.kind != "text" and not token.text.isascii():
            yield Diagnostic(token.line, f"the character {token.text[:1]!r} is not ASCII")


def _directives(stream: list[Token]) -> Iterator[Diagnostic]:
    own: set[str] = set()
    for token in stream:
        if token.kind != "directive":
            if token.text == "##":
                yield Diagnostic(token.line, "pasted tokens (##) hide what the code is")
            continue
        match = re.match(r"#\s*(\w*)\s*(.*)", token.text, re.S)
        word, rest = (match[1], match[2]) if match else ("", "")
        names = re.findall(r"[A-Za-z_]\w*", rest)
        if word == "include":
            header = re.match(r"""[<"]([\w./]+)[>"]""", rest)
            if header is None or header[1] not in HEADERS:
                yield Diagnostic(token.line, f"#include {rest.strip()[:40]} is not allowed; device headers are")
        elif word == "define":
            yield from _define(token, names)
            own.update(names[:1])
        elif word in ("if", "ifdef", "ifndef", "elif"):
            wild = [n for n in names if n not in own and n != "defined" and word != "ifndef"]
            wild += [n for n in names if n.startswith("__") or n.lower().startswith("simt")]
            if wild:
                yield Diagnostic(token.line, f"a condition on '{wild[0]}' would show different code to other compilers")
        elif word not in ("undef", "else", "endif", "pragma", ""):
            yield Diagnostic(token.line, f"#{word} is not allowed")


def _define(token: Token, names: list[str]) -> Iterator[Diagnostic]:
    if "##" in token.text or names and names[0].startswith("__"):
        yield Diagnostic(token.line, "a macro may neither paste tokens nor have a name that begins with __")
    for name in names[1:]:
        if name in _DEFINES_REFUSED or name in _REFUSED:
            yield Diagnostic(token.line, f"'{name}' may not hide in a macro")
    if names and names[0] in ("if", "for", "while", "return", "float", "double", "int", "half", "const", "else"):
        yield Diagnostic(token.line, f"'{names[0]}' may not be redefined")


def _names(stream: list[Token]) -> Iterator[Diagnostic]:
    depth = 0
    for index, token in enumerate(stream):
        text = token.text
        following = stream[index + 1].text if index + 1 < len(stream) else ""
        depth += (text == "{") - (text == "}")
        if text == "<<<":
            yield Diagnostic(token.line, "launches belong into the plan")
        if token.kind != "name":
            continue
        member = index > 0 and stream[index - 1].text in (".", "->")
        if text in _REFUSED and not member:
            yield Diagnostic(token.line, f"'{text}' is not allowed: {_REFUSED[text]}")
        elif text.startswith("__builtin_") and text not in ("__builtin_assume", "__builtin_assume_aligned"):
            yield Diagnostic(token.line, f"'{text}' belongs to the host compiler")
        elif text.lower().startswith("simt"):
            yield Diagnostic(token.line, f"'{text}' is not allowed: {_PREFIXES['simt']}")
        elif re.match(r"cuda[A-Z]|cu[A-Z]", text) and not _TYPES_OF_CUDA.match(text) and following == "(":
            yield Diagnostic(token.line, f"'{text}' is not allowed: {_PREFIXES['cuda']}")
        elif text == "static" and depth and following not in (
            "const", "constexpr", "__device__", "__forceinline__", "__inline__", "inline", "__shared__",
        ):  # fmt: skip
            yield Diagnostic(token.line, "a static variable outlives a launch; use a scratch buffer of the plan")
        elif text == "extern" and following not in ('"C"', "__shared__"):
            yield Diagnostic(token.line, 'extern is for shared memory and "C" only')


def _clocks(stream: list[Token]) -> Iterator[Diagnostic]:
    """Clocks that inline PTX names; texts side by side are one."""
    for index, token in enumerate(stream):
        if token.kind != "text" or index and stream[index - 1].kind == "text":
            continue
        side_by_side = itertools.takewhile(lambda t: t.kind == "text", stream[index:])
        words = "".join(re.sub(r'^[^"]*"|"$', "", t.text) for t in side_by_side)
        if found := re.search(r"%(clock|globaltimer)\w*", words):
            yield Diagnostic(token.line, f"'{found[0]}' is not allowed: {_REFUSED['clock']}")


_INNOCENT = ("using", "typedef", "template", "struct", "class", "enum", "union", "namespace", "static_assert")


def _scope(stream: list[Token]) -> Iterator[Diagnostic]:
    """Declarations outside functions: only device functions, types and constants."""
    at = 0
    while at < len(stream):
        token = stream[at]
        if token.kind == "directive" or token.text in (";", "}"):
            at += 1
            continue
        end = at
        while end < len(stream) and stream[end].text not in (";", "{", "="):
            end += 1
        words = [t.text for t in stream[at:end]]
        stop = stream[end].text if end < len(stream) else ""
        if words and words[0] == "namespace" or words[:2] == ["extern", '"C"'] and len(words) == 2:
            at = end + 1
            continue
        device = "__device__" in words or "__global__" in words
        if words and words[0] == "template" and "<" in words:
            words = words[_after_template(words) :]
        if words and words[0] not in _INNOCENT:
            callable_ = "(" in words and stop != "="
            if not callable_ and "__shared__" not in words:
                constant = {"const", "constexpr", "__constant__"} & set(words)
                if not constant:
                    yield Diagnostic(
                        token.line, "a variable outside functions outlives a launch; use a scratch buffer of the plan"
                    )
            elif callable_ and not device and "constexpr" not in words:
                yield Diagnostic(token.line, "host functions never run here; write __device__")
        at = _past(stream, end)


def _after_template(words: list[str]) -> int:
    depth = 0
    for index, word in enumerate(words):
        depth += (word == "<") - (word == ">") - 3 * (word == ">>>")
        if index and depth <= 0 and word == ">":
            return index + 1
    return len(words)


def _past(stream: list[Token], end: int) -> int:
    """The token after the declaration that reached `end`: past its body, or past its semicolon."""
    depth = 0
    for index in range(end, len(stream)):
        text = stream[index].text
        depth += (text == "{") - (text == "}")
        if depth <= 0 and text in (";", "}"):
            follows = stream[index + 1].text if index + 1 < len(stream) else ""
            return index + 2 if text == "}" and follows == ";" else index + 1
    return len(stream)
