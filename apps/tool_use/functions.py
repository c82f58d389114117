"""Python functions as tools: their names, docstrings and typed parameters."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from apps.tool_use.spec import ToolSpec
from core.errors import AppInputError

SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def from_function(function: Callable[..., Any]) -> ToolSpec:
    """From a Python function: its name, the first paragraph of its docstring, its typed parameters.

    Lines "name: text" under "Args:" describe parameters. Raises `AppInputError` for a parameter without a type, one
    that cannot be given by name, and for what has no name or no signature.
    """
    name = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise AppInputError(f"a tool has a name, {function!r} has none", hint="write a function with def")
    try:
        signature, hints = inspect.signature(function), typing.get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise AppInputError(f"the parameters of '{name}' cannot be read: {error}") from error
    text = inspect.getdoc(function) or ""
    described = dict(re.findall(r"^\s+(\w+)(?: \([^)]*\))?:\s*(.+)$", text.partition("Args:")[2], re.M))
    properties: dict[str, Any] = {}
    required = []
    for key, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise AppInputError(f"'{name}' takes *{key}: a tool's parameters are named")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise AppInputError(f"'{name}' takes '{key}' by its place alone: a tool's parameters are named")
        if key not in hints:
            raise AppInputError(f"parameter '{key}' of '{name}' has no type", hint="add a type hint")
        schema = schema_of(hints[key], f"{name}.{key}")
        if key in described:
            schema["description"] = described[key].strip()
        if parameter.default is parameter.empty:
            required.append(key)
        elif _is_json(parameter.default):
            schema["default"] = parameter.default
        properties[key] = schema
    paragraph = " ".join(text.split("\n\n")[0].split())
    return ToolSpec(name, paragraph, {"type": "object", "properties": properties, "required": required})


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
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        items = [schema_of(option, where) for option in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in (list, tuple, Sequence, Iterable) or hint in (list, tuple):
        return {"type": "array", "items": schema_of(inner[0], where) if inner else {}}
    if origin in (dict, Mapping) or hint is dict:
        if inner and inner[0] is not str:
            raise AppInputError(f"the keys of {where} are no texts: {hint}", hint="JSON has dict[str, …] alone")
        return {"type": "object", "additionalProperties": schema_of(inner[1], where) if inner else True}
    raise AppInputError(f"the type of {where} has no JSON form: {hint}", hint="use str, int, float, bool, list, dict")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
