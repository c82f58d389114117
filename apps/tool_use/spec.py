"""What a tool is: a name, what it does, and a JSON Schema of its parameters; read from wherever tools are described.

The `tools` of chat completions, the function documents of the Berkeley Function Calling Leaderboard (Patil et al. 2025,
whose types are Python's: dict, float, tuple, any), and ToolBench's API lists (Qin et al. 2023); functions are read by
`functions`, OpenAPI 3 by `openapi`. Nothing here calls a tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import DataError

PYTHON_TYPE = "x-python-type"
"""Keeps the Python type of a parameter where JSON Schema has no word for it."""
FROM_PYTHON = {
    "dict": "object", "float": "number", "tuple": "array", "any": None, "integer": "integer", "string": "string",
    "boolean": "boolean", "array": "array", "list": "array", "object": "object", "number": "number", "null": "null",
}  # fmt: skip
FROM_TOOLBENCH = {"NUMBER": "integer", "STRING": "string", "BOOLEAN": "boolean"}
LONGEST_NAME, LONGEST_TEXT = 64, 256
SCHEMAS = ("parameters", "input_schema", "inputSchema")
"""Where an entry may have its schema."""


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
    """From chat completions' {"type": "function", "function": {…}}, or the inner object alone.

    Its schema is `parameters`, or `input_schema` or `inputSchema` as other protocols have it.
    """
    inner = entry.get("function", entry) if isinstance(entry, Mapping) else entry
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        raise DataError("a tool has a name", field=where, got=entry, expected='{"name": …, "parameters": {…}}')
    given = next((inner[word] for word in SCHEMAS if inner.get(word)), {"type": "object", "properties": {}})
    at = f"{where}/{inner['name']}/parameters"
    if not isinstance(given, Mapping) or given.get("type", "object") not in ("object", "dict"):
        raise DataError("a tool's parameters are a schema of an object", field=at, got=given)
    properties = given.get("properties", {})
    if not isinstance(properties, Mapping) or not all(isinstance(v, (Mapping, bool)) for v in properties.values()):
        raise DataError("properties are an object of schemas", field=f"{at}/properties", got=properties)
    if "type" not in given and "properties" not in given and all(isinstance(v, Mapping) for v in given.values()):
        hint = '{"type": "object", "properties": {…}} around them'
        raise DataError("these are parameters without a schema of an object", field=at, got=given, hint=hint)
    needed = given.get("required", [])
    if not isinstance(needed, list) or not all(isinstance(name, str) for name in needed):
        raise DataError("required is a list of names", field=f"{at}/required", got=needed)
    try:
        json.dumps(inner, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise DataError(f"the tool has no text form: {error}", field=where, got=repr(inner)) from error
    return ToolSpec(inner["name"], str(inner.get("description") or ""), dict(given), inner.get("returns"))


def from_bfcl(document: Mapping[str, Any]) -> ToolSpec:
    """From a function document of the leaderboard; its types become JSON Schema's and are kept beside."""
    name = document["name"]
    parameters = _json_types(document.get("parameters") or {}, "#")
    return from_chat({"name": name, "description": document.get("description"), "parameters": parameters}, "function")


def _json_types(schema: Any, at: str) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = {}
    for word, value in schema.items():
        if word == "type":
            if not isinstance(value, str) or value not in FROM_PYTHON:
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
    names = {"object": "dict", "number": "float"}
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if not isinstance(kind, str) or kind == "null":
        return "any"
    return schema.get(PYTHON_TYPE) or names.get(kind, kind)


def _without_marks(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {word: _without_marks(value) for word, value in schema.items() if word != PYTHON_TYPE}
    return [_without_marks(item) for item in schema] if isinstance(schema, list) else schema


def from_toolbench(entry: Mapping[str, Any]) -> ToolSpec:
    """From an entry of ToolBench's `api_list`, with its rules for names and types."""
    api, tool = plain_name(entry["api_name"]), plain_name(entry["tool_name"])
    properties, required = {}, []
    for group in ("required_parameters", "optional_parameters"):
        for parameter in entry.get(group, []):
            name = plain_name(parameter["name"])
            text = str(parameter.get("description", ""))[:LONGEST_TEXT]
            kind = FROM_TOOLBENCH.get(str(parameter.get("type", "")).upper(), "string")
            properties[name] = {"type": kind, "description": text}
            if group == "required_parameters":
                required.append(name)
    text = f"{entry.get('tool_name', '')}: {entry.get('api_description', '')}"[:LONGEST_TEXT]
    parameters = {"type": "object", "properties": properties, "required": required}
    category = entry.get("category_name")
    return ToolSpec(f"{api}_for_{tool}"[-LONGEST_NAME:], text, parameters, None, str(category) if category else None)


def plain_name(name: str) -> str:
    """A name as ToolBench writes it: lower-case, words joined by underscores, no digit first."""
    text = re.sub(r"\W+", "_", str(name)).lower().strip("_")
    return f"get_{text}" if not text or text[0].isdigit() else text


def as_spec(tool: Any) -> ToolSpec:
    """A `ToolSpec` from a spec, a function, or a chat-completions entry."""
    if isinstance(tool, ToolSpec):
        return tool
    if callable(tool):
        from apps.tool_use.functions import from_function

        return from_function(tool)
    return from_chat(tool)


def tools_of(text: str) -> list[ToolSpec]:
    """Tools from text: a JSON list of chat-completions entries, or OpenAPI 3 in JSON or YAML. Raises `DataError`."""
    from apps.tool_use.openapi import document_of, from_openapi

    given = document_of(text or "")
    if isinstance(given, Mapping) and {"paths", "openapi", "swagger"} & set(given):
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
