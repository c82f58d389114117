"""Whether a parsed value is valid under the part of JSON Schema that `json_schema` keeps to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.inference.constrained.json_schema import resolve, type_of


def is_valid(value: Any, schema: Any, root: Any) -> bool:
    """True when `value` is valid; references are looked up in `root`."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not is_valid(value, resolve(root, schema["$ref"], "#"), root):
        return False
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds is not None and not type_of(value) & set(kinds):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        return False
    if not all(is_valid(value, part, root) for part in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(is_valid(value, part, root) for part in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(is_valid(value, part, root) for part in schema["oneOf"]) != 1:
        return False
    if isinstance(value, str):
        return _text(value, schema)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value, schema)
    if isinstance(value, list):
        return _array(value, schema, root)
    return _object(value, schema, root) if isinstance(value, Mapping) else True


def _same(first: Any, second: Any) -> bool:
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _text(value: str, schema: Mapping[str, Any]) -> bool:
    fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return fits and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)


def _number(value: float, schema: Mapping[str, Any]) -> bool:
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
        and value < schema.get("exclusiveMaximum", value + 1)
        and ("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    )


def _array(value: list[Any], schema: Mapping[str, Any], root: Any) -> bool:
    first = schema.get("prefixItems", [])
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    if schema.get("uniqueItems") and any(_same(a, b) for n, a in enumerate(value) for b in value[:n]):
        return False
    if not all(is_valid(item, part, root) for item, part in zip(value, first)):
        return False
    return all(is_valid(item, schema.get("items", True), root) for item in value[len(first) :])


def _object(value: Mapping[str, Any], schema: Mapping[str, Any], root: Any) -> bool:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", ())):
        return False
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        return False
    return all(is_valid(item, properties.get(name, more), root) for name, item in value.items())
