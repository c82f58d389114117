"""What a tool is: a name, what it does, and a JSON Schema of its parameters; read from wherever tools are described.

Python functions (signature, type hints, docstring), OpenAPI 3 documents, the `tools` of chat completions, the function
documents of the Berkeley Function Calling Leaderboard (Patil et al. 2025, whose types are Python's: dict, float, tuple,
any), and ToolBench's API lists (Qin et al. 2023). Nothing here calls a tool.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import AppInputError, DataError

PYTHON_TYPE = "x-python-type"
"""Keeps the Python type of a parameter where JSON Schema has no word for it."""
FROM_PYTHON = {
    "dict": "object", "float": "number", "tuple": "array", "any": None, "integer": "integer", "string": "string",
    "boolean": "boolean", "array": "array", "list": "array", "object": "object", "number": "number", "null": "null",
}  # fmt: skip
FROM_TOOLBENCH = {"NUMBER": "integer", "STRING": "string", "BOOLEAN": "boolean"}
LONGEST_NAME, LONGEST_TEXT = 64, 256


@dataclass(frozen=True)
class ToolSpec:
    """A tool.

    Args:
        name: how it is called. description: what it does.
        parameters: JSON Schema of an object. returns: schema of the result. category: of a catalogue.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    returns: Mapping[str, Any] | None = None
    category: str | None = None

    def to_chat(self) -> dict[str, Any]:
        """The entry of `tools` in a chat completion."""
        parameters = {"type": "object", "properties": {}, **_without_marks(self.parameters)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    @property
    def required(self) -> list[str]:
        return list(self.parameters.get("required", []))

    @property
    def properties(self) -> Mapping[str, Any]:
        return self.parameters.get("properties", {})


def from_chat(entry: Any, where: str = "tools") -> ToolSpec:
    """From chat completions' {"type": "function", "function": {…}}, or the inner object alone."""
    inner = entry.get("function", entry) if isinstance(entry, Mapping) else entry
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise DataError("a tool has a name", field=where, got=entry, expected='{"name": …, "parameters": {…}}')
    parameters = inner.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") not in ("object", "dict"):
        raise DataError(
            "a tool's parameters are a schema of an object", field=f"{where}/{inner['name']}/parameters", got=parameters
        )
    return ToolSpec(inner["name"], str(inner.get("description") or ""), dict(parameters), inner.get("returns"))


def from_bfcl(document: Mapping[str, Any]) -> ToolSpec:
    """From a function document of the leaderboard; its types become JSON Schema's and are kept beside."""
    return ToolSpec(
        str(document["name"]), str(document.get("description", "")), _json_types(document.get("parameters", {}), "#")
    )


def _json_types(schema: Any, at: str) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = {}
    for word, value in schema.items():
        if word == "type":
            if value not in FROM_PYTHON:
                raise DataError("unknown type", field=f"{at}/type", got=value, expected=", ".join(FROM_PYTHON))
            if FROM_PYTHON[value] is not None:
                made["type"] = FROM_PYTHON[value]
            if FROM_PYTHON[value] != value:
                made[PYTHON_TYPE] = value
        elif word == "properties" and isinstance(value, Mapping):
            made[word] = {name: _json_types(inner, f"{at}/properties/{name}") for name, inner in value.items()}
        elif word in ("items", "additionalProperties"):
            made[word] = _json_types(value, f"{at}/{word}")
        elif word == "optional":
            continue
        else:
            made[word] = value
    return made


def python_type(schema: Mapping[str, Any]) -> str:
    """A parameter's type in the leaderboard's words."""
    names = {"object": "dict", "number": "float", None: "any"}
    kind = schema.get("type")
    return schema.get(PYTHON_TYPE) or names.get(kind, kind)


def _without_marks(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {word: _without_marks(value) for word, value in schema.items() if word != PYTHON_TYPE}
    return [_without_marks(item) for item in schema] if isinstance(schema, list) else schema


def from_toolbench(entry: Mapping[str, Any]) -> ToolSpec:
    """From an entry of ToolBench's `api_list`, with its rules for names and types."""
    api, tool = _plain_name(entry["api_name"]), _plain_name(entry["tool_name"])
    properties, required = {}, []
    for group in ("required_parameters", "optional_parameters"):
        for parameter in entry.get(group, []):
            name = _plain_name(parameter["name"])
            text = str(parameter.get("description", ""))[:LONGEST_TEXT]
            kind = FROM_TOOLBENCH.get(str(parameter.get("type", "")).upper(), "string")
            properties[name] = {"type": kind, "description": text}
            if group == "required_parameters":
                required.append(name)
    text = f"{entry.get('tool_name', '')}: {entry.get('api_description', '')}"[:LONGEST_TEXT]
    parameters = {"type": "object", "properties": properties, "required": required}
    return ToolSpec(f"{api}_for_{tool}"[-LONGEST_NAME:], text, parameters, category=entry.get("category_name"))


def _plain_name(name: str) -> str:
    text = re.sub(r"\W+", "_", str(name)).lower().strip("_")
    return f"get_{text}" if not text or text[0].isdigit() else text


@dataclass(frozen=True)
class Route:
    """Where an operation of an OpenAPI document is called, and each argument's place: path, query, header or body."""

    verb: str
    path: str
    places: Mapping[str, str]


def from_openapi(document: Mapping[str, Any]) -> list[ToolSpec]:
    """One tool for each operation of an OpenAPI 3 document: path, query and body parameters together.

    Raises:
        DataError: no paths, or a parameter without a schema, with its place.
    """
    return [tool for tool, _ in openapi_operations(document)]


def openapi_operations(document: Mapping[str, Any]) -> list[tuple[ToolSpec, Route]]:
    """The tools of `from_openapi` with their routes."""
    paths = document.get("paths")
    if not isinstance(paths, Mapping) or not paths:
        raise DataError("the document has no paths", field="paths", hint="give an OpenAPI 3 document")
    found = []
    for path, item in paths.items():
        for verb in ("get", "post", "put", "patch", "delete"):
            if isinstance(item, Mapping) and verb in item:
                found.append(_operation(document, path, verb, item))
    check_tools([tool for tool, _ in found])
    return found


def _operation(document: Mapping[str, Any], path: str, verb: str, item: Mapping[str, Any]) -> tuple[ToolSpec, Route]:
    operation, at = item[verb], f"paths/{path}/{verb}"
    properties: dict[str, Any] = {}
    places: dict[str, str] = {}
    required: list[str] = []
    for number, given in enumerate([*item.get("parameters", []), *operation.get("parameters", [])]):
        parameter = _referred(document, given)
        if "name" not in parameter or "schema" not in parameter:
            raise DataError("a parameter has a name and a schema", field=f"{at}/parameters/{number}", got=given)
        schema = _inlined(document, parameter["schema"])
        properties[parameter["name"]] = {"description": parameter.get("description", ""), **schema}
        places[parameter["name"]] = parameter.get("in", "query")
        if parameter.get("required") or parameter.get("in") == "path":
            required.append(parameter["name"])
    content = _referred(document, operation.get("requestBody", {})).get("content", {})
    body = _inlined(document, content.get("application/json", {}).get("schema", {}))
    properties.update(body.get("properties", {}))
    places.update(dict.fromkeys(body.get("properties", {}), "body"))
    required += [name for name in body.get("required", []) if name not in required]
    name = operation.get("operationId") or re.sub("_+", "_", _plain_name(f"{verb}_{path}"))
    text = operation.get("summary") or operation.get("description") or ""
    tool = ToolSpec(name, text, {"type": "object", "properties": properties, "required": required})
    return tool, Route(verb, path, places)


def _referred(document: Mapping[str, Any], given: Any) -> Any:
    if isinstance(given, Mapping) and "$ref" in given:
        from core.inference.constrained.json_schema import resolve

        return resolve(document, given["$ref"], "openapi")
    return given


def _inlined(document: Mapping[str, Any], schema: Any, depth: int = 6) -> Any:
    """The schema without references; a deep one ends in an open schema."""
    if isinstance(schema, list):
        return [_inlined(document, item, depth) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        return _inlined(document, _referred(document, schema), depth - 1) if depth else {}
    return {word: _inlined(document, value, depth) for word, value in schema.items()}


def from_function(function: Callable[..., Any]) -> ToolSpec:
    """From a Python function: its name, the first paragraph of its docstring, its typed parameters.

    Lines "name: text" under "Args:" describe parameters. Raises `AppInputError` for a parameter without a type.
    """
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    text = inspect.getdoc(function) or ""
    described = dict(re.findall(r"^\s+(\w+)(?: \([^)]*\))?:\s*(.+)$", text.partition("Args:")[2], re.M))
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise AppInputError(f"'{function.__name__}' takes *{name}: a tool's parameters are named")
        if name not in hints:
            raise AppInputError(f"parameter '{name}' of '{function.__name__}' has no type", hint="add a type hint")
        schema = schema_of(hints[name], f"{function.__name__}.{name}")
        if name in described:
            schema["description"] = described[name].strip()
        if parameter.default is parameter.empty:
            required.append(name)
        else:
            schema["default"] = parameter.default
        properties[name] = schema
    paragraph = " ".join(text.split("\n\n")[0].split())
    return ToolSpec(function.__name__, paragraph, {"type": "object", "properties": properties, "required": required})


SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema_of(hint: Any, where: str) -> dict[str, Any]:
    """The JSON Schema of a type hint. Raises `AppInputError` for a type that JSON does not have."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return {"type": SCALARS[hint]}
    if hint is Any:
        return {}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(option, where) for option in inner]}
    if origin in (list, tuple, Sequence, Iterable) or hint in (list, tuple):
        kinds = [option for option in inner if option is not Ellipsis]
        return {"type": "array", "items": schema_of(kinds[0], where) if kinds else {}}
    if origin in (dict, Mapping) or hint is dict:
        return {"type": "object", "additionalProperties": schema_of(inner[1], where) if len(inner) == 2 else True}
    raise AppInputError(f"the type of {where} has no JSON form: {hint}", hint="use str, int, float, bool, list, dict")


def as_spec(tool: Any) -> ToolSpec:
    """A `ToolSpec` from a spec, a function, or a chat-completions entry."""
    if isinstance(tool, ToolSpec):
        return tool
    if callable(tool):
        return from_function(tool)
    return from_chat(tool)


def tools_of(text: str) -> list[ToolSpec]:
    """Tools from JSON: a list of chat-completions entries, or an OpenAPI 3 document. Raises `DataError`."""
    try:
        given = json.loads(text or "")
    except json.JSONDecodeError as error:
        raise DataError(f"the tools are not JSON: {error.msg}", line=error.lineno) from error
    if isinstance(given, Mapping) and "paths" in given:
        return from_openapi(given)
    tools = [from_chat(entry, f"tools[{n}]") for n, entry in enumerate(given if isinstance(given, list) else [given])]
    if not tools:
        raise DataError("no tools were given", field="tools")
    check_tools(tools)
    return tools


def check_tools(tools: Sequence[ToolSpec]) -> None:
    """Raise `DataError` for two tools of one name."""
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise DataError(f"two tools are called '{tool.name}'", field="tools", hint="give each its own name")
        seen.add(tool.name)
