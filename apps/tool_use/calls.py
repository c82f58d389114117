"""Calls as text, and text as calls, in the forms that models write them.

`json` is a list of {"name", "arguments"}; `hermes` puts each such object between <tool_call> tags; `python` is a list
of function calls. Reading is tolerant of code fences and of prose around the calls, and never repairs a value in
silence: what was passed over is listed. Each form can be kept to while a model writes (`constraint`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from apps.tool_use.spec import ToolSpec
from core.errors import ConfigError, nearest

FORMATS = ("json", "hermes", "python")
TRIES = 300
"""Brackets at which calls are looked for in prose."""
_FENCE = re.compile(r"```(?:json|python|tool_code)?\s*\n?(.*?)```", re.S)
_LIST = re.compile(r"^\s*\[|\[(?=[A-Za-z_])", re.M)


@dataclass(frozen=True)
class Call:
    """A tool's name and its arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": dict(self.arguments)}


@dataclass
class Parsed:
    """Calls found in a text, the text left over, and what was passed over and why."""

    calls: list[Call]
    rest: str = ""
    notes: list[str] = field(default_factory=list)


def check_format(name: str) -> str:
    if name not in FORMATS:
        raise ConfigError(
            f"unknown call format '{name}'", hint=nearest(name, FORMATS) or f"known: {', '.join(FORMATS)}"
        )
    return name


def form_of(text: str) -> str:
    """The form that a text with calls is written in, by how they begin."""
    if "<tool_call>" in text:
        return "hermes"
    return "python" if re.match(r"(?:```\w*)?\s*\[?\s*[A-Za-z_][\w.]*\(", text) else "json"


def render(calls: Sequence[Call], form: str = "json") -> str:
    """The calls as a model writes them."""
    if check_format(form) == "python":
        return f"[{', '.join(_as_python(call) for call in calls)}]"
    texts = [json.dumps(call.to_dict(), ensure_ascii=False) for call in calls]
    if form == "json":
        return f"[{', '.join(texts)}]"
    return "\n".join(f"<tool_call>{text}</tool_call>" for text in texts)


def _as_python(call: Call) -> str:
    from core.inference.constrained.python_call import is_name

    said = [f"{n}={v!r}" if is_name(n) else f"**{ {n: v}!r}" for n, v in call.arguments.items()]
    return f"{call.name}({', '.join(said)})"


def parse(text: str, form: str = "json") -> Parsed:
    """The calls in a text; none when it holds no call."""
    check_format(form)
    if form == "hermes":
        before, *tagged = text.split("<tool_call>")
        pieces = [piece.partition("</tool_call>") for piece in tagged]
        left = "".join(after if closed else f"<tool_call>{inner}" for inner, closed, after in pieces)
        parsed = Parsed([], f"{before}{left}".strip())
        for inner, closed, _ in pieces:
            if closed:
                _read_json(inner, parsed)
        return parsed
    fenced = _FENCE.search(text)
    body = (fenced[1] if fenced else text).strip()
    parsed = Parsed([], _FENCE.sub("", text).strip() if fenced else "")
    if form == "python":
        _read_python(body, parsed)
    else:
        _read_json(body, parsed)
    return parsed


def _read_json(text: str, parsed: Parsed) -> None:
    """The first JSON list or object of objects in the text; what stands around it is left over."""
    value, problem, start, end = None, None, 0, 0
    if text.strip() == "[]":
        return
    decoder = json.JSONDecoder()
    for found in islice(re.finditer(r"[\[{]", text), TRIES):
        start = found.start()
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            problem = problem or f"not JSON: {error.msg} at {error.pos}"
            continue
        except RecursionError:
            problem = "not JSON that can be read: nested too deep"
            break
        except ValueError as error:
            problem = problem or f"not JSON that can be read: {error}"
            continue
        if isinstance(value, dict) or (value and all(isinstance(item, dict) for item in value)):
            break
        value = None
    if value is None:
        if problem is not None:
            parsed.notes.append(problem)
        parsed.rest = f"{parsed.rest} {text}".strip()
        return
    parsed.rest = " ".join(filter(None, [parsed.rest, text[:start].strip(), text[end:].strip()]))
    for item in value if isinstance(value, list) else [value]:
        _read_call(item, parsed)


def _read_call(item: Any, parsed: Parsed) -> None:
    """A call from {"name", "arguments"}, or a note of what is none."""
    name = item.get("name") if isinstance(item, dict) else None
    arguments = item.get("arguments", item.get("parameters", {})) if isinstance(item, dict) else None
    if isinstance(arguments, str):
        parsed.notes.append("arguments were a text that holds JSON")
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if isinstance(name, str) and isinstance(arguments, dict) and is_text(json.dumps(item, ensure_ascii=False)):
        parsed.calls.append(Call(name, arguments))
    else:
        parsed.notes.append(f"no call: {json.dumps(item)[:80]}")


def is_text(text: str) -> bool:
    """Whether the text has only characters that UTF-8 writes; half of an escaped pair ("\\ud83d") is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_python(text: str, parsed: Parsed) -> None:
    """The calls of a list, or one alone; a list may stand in prose, which is left over."""
    listed, problem = _expression(text if text.startswith("[") else f"[{text}]")
    if not _has_calls_alone(listed):
        end = text.rfind("]") + 1
        for found in islice(_LIST.finditer(text, 0, end), TRIES):
            start = found.end() - 1
            inner, _ = _expression(text[start:end])
            if _has_calls_alone(inner):
                listed = inner
                parsed.rest = " ".join(filter(None, [parsed.rest, text[:start].strip(), text[end:].strip()]))
                break
    if listed is None:
        parsed.notes.append(f"not Python: {problem}")
        return
    for node in listed.elts if isinstance(listed, ast.List) else [listed]:
        try:
            _read_node(node, parsed)
        except RecursionError:
            parsed.notes.append("no call that can be read: nested too deep")


def _read_node(node: ast.expr, parsed: Parsed) -> None:
    """A call with named arguments, or a note of what is none."""
    if not isinstance(node, ast.Call) or node.args:
        parsed.notes.append(f"no call with named arguments: {ast.unparse(node)[:80]}")
        return
    arguments = {}
    for keyword in node.keywords:
        try:
            value = ast.literal_eval(keyword.value)
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (ValueError, TypeError):
            value = ast.unparse(keyword.value)
            parsed.notes.append(f"'{keyword.arg or value}' is no literal")
        if keyword.arg is not None:
            arguments[keyword.arg] = value
        elif isinstance(value, dict):
            arguments.update({str(name): inner for name, inner in value.items()})
    parsed.calls.append(Call(ast.unparse(node.func), arguments))


def _has_calls_alone(node: ast.expr | None) -> bool:
    return isinstance(node, ast.List) and all(isinstance(inner, ast.Call) for inner in node.elts)


def _expression(text: str) -> tuple[ast.expr | None, Exception | None]:
    """What a text says in Python, or why it says nothing."""
    try:
        return ast.parse(text.strip(), mode="eval").body, None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, error


def constraint(
    tools: Sequence[ToolSpec],
    tokenizer: Any,
    form: str = "json",
    *,
    most: int | None = None,
    size: int = 0,
    thought: bool = False,
):
    """The `JsonConstraint` of calls to these tools, from one to `most` of them.

    Args:
        most: calls at most; None is any number. size: logits of the model, where it has more than tokens.
        thought: a line of free text may stand before the calls.

    Raises:
        ConfigError: a tool's schema cannot be kept to, whose name and place are told, or its name not in Python; or
            the tools together need too many states.
    """
    from core.inference.constrained.constraint import JsonConstraint
    from core.inference.constrained.json_schema import deepest
    from core.inference.constrained.masks import vocabulary_of

    check_format(form)
    return JsonConstraint(
        deepest(lambda depth: _automaton(tools, form, most, thought, depth)), vocabulary_of(tokenizer, size)
    )


def _automaton(tools: Sequence[ToolSpec], form: str, most: int | None, thought: bool, depth: int) -> Any:
    """The automaton of calls whose open parts nest to a depth."""
    from core.inference.constrained.automaton import Automaton
    from core.inference.constrained.json_schema import Compiler, SchemaError
    from core.inference.constrained.python_call import PythonCompiler, is_name

    compiler = PythonCompiler({}) if form == "python" else Compiler({})
    b = compiler.b

    def call(tool: ToolSpec) -> Any:
        schema, at = {**tool.parameters, "type": "object"}, f"{tool.name}#"
        if tool.parameters.get("type", "object") != "object":
            raise SchemaError("a tool's parameters are a schema of an object", where=f"{at}/type")
        if isinstance(compiler, PythonCompiler):
            if not all(map(is_name, tool.name.split("."))):
                raise ConfigError(f"'{tool.name}' cannot be called in Python", hint="use json or hermes")
            return compiler.call(tool.name, schema, at, depth)
        head = b.text(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ')
        return b.sequence([head, compiler.value(schema, at, depth), b.text("}")])

    def one() -> Any:
        pieces = []
        for tool in tools:
            compiler.root = tool.parameters
            try:
                pieces.append(call(tool))
            except SchemaError as error:
                raise ConfigError(f"the schema of '{tool.name}' cannot be kept to: {error.what}", where=error.where,
                                  hint="constrained: false writes freely") from error  # fmt: skip
        return b.either(pieces)

    if form != "hermes":
        piece = compiler.listed("[", "]", one, 1, most)
    else:

        def tagged() -> Any:
            return b.sequence([b.text("<tool_call>"), one(), b.text("</tool_call>")])

        further = compiler.times(lambda: b.sequence([b.text("\n"), tagged()]), 0, None if most is None else most - 1)
        piece = b.sequence([tagged(), further])
    if piece is None:
        raise ConfigError("no call to these tools is valid")
    line = b.optional(b.sequence([_line(b), b.text("\n")])) if thought else b.nothing()
    whole = b.sequence([b.optional(b.text(" ")), line, piece])
    assert whole is not None
    return Automaton(b, whole)


def _line(b: Any) -> Any:
    """A line of text in which no call begins."""
    from core.inference.constrained.schema_parts import utf8

    start, end = utf8(b)
    b.edges[start] += [(low, high, end) for low, high in ((0x20, 0x3B), (0x3D, 0x5A), (0x5C, 0x7A), (0x7C, 0x7E))]
    return b.repeat((start, end))
