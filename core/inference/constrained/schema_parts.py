"""What a schema's keywords mean before anything is built of them: types, references, `allOf`, values in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from core.errors import ConfigError
from core.inference.constrained.automaton import Builder

REFUSED = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains",
    "propertyNames", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
ASSERTIONS = (
    "$ref", "type", "enum", "const", "allOf", "anyOf", "oneOf", "properties", "required", "additionalProperties",
    "patternProperties", "minProperties", "maxProperties", "items", "prefixItems", "additionalItems", "minItems",
    "maxItems", "uniqueItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
)  # fmt: skip
"""The keywords that say which values are valid; others describe."""


class SchemaError(ConfigError):
    """A schema that cannot be kept to, with the JSON pointer of the part that is the reason."""


def check(schema: Mapping[str, Any], at: str) -> None:
    """Raise `SchemaError` for a keyword that could be broken unnoticed."""
    for word in REFUSED:
        if word in schema:
            raise SchemaError(f"'{word}' is not supported", where=f"{at}/{word}", hint="leave it out")


def utf8(b: Builder) -> tuple[int, int]:
    """One character beyond ASCII, as UTF-8 writes it."""
    start, end = b.state(), b.state()
    one, two, three = b.state(), b.state(), b.state()
    for state, target in ((one, end), (two, one), (three, two)):
        b.edges[state].append((0x80, 0xBF, target))
    b.edges[start] += [(0xC2, 0xDF, one), (0xE1, 0xEC, two), (0xEE, 0xEF, two), (0xF1, 0xF3, three)]
    for first, low, high, target in (
        (0xE0, 0xA0, 0xBF, one), (0xED, 0x80, 0x9F, one), (0xF0, 0x90, 0xBF, two), (0xF4, 0x80, 0x8F, two),
    ):  # fmt: skip
        state = b.state()
        b.edges[start].append((first, first, state))
        b.edges[state].append((low, high, target))
    return start, end


def outside(low: int, high: int, points: Iterable[int]) -> list[tuple[int, int]]:
    """[low, high] without some points, which come in order, as ranges."""
    found = []
    for point in points:
        if low <= point <= high:
            if point > low:
                found.append((low, point - 1))
            low = point + 1
    return [*found, (low, high)] if low <= high else found


def type_of(value: Any) -> set[str]:
    """The JSON types of a Python value; an integer is also a number."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return {names[type(value)]}


def free_keys(schema: Mapping[str, Any], at: str) -> Any:
    """The schema of the values of an object with any keys; None for one whose properties are listed."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not all(isinstance(name, str) for name in properties):
        raise SchemaError("properties are an object", where=f"{at}/properties")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise SchemaError("required is a list of names", where=f"{at}/required")
    more = schema.get("additionalProperties", True)
    free = None if properties or required or more is False else more
    for pattern in schema.get("patternProperties", ()):
        try:
            if free is not None or any(re.search(pattern, name) for name in [*properties, *required]):
                raise SchemaError("patternProperties of keys that are written are not supported",
                                  where=f"{at}/patternProperties", hint="list the properties")  # fmt: skip
        except (re.error, TypeError) as error:
            raise SchemaError(f"not a regular expression: {error}", where=f"{at}/patternProperties") from error
    return free


def merged(schema: Mapping[str, Any], at: str) -> dict[str, Any]:
    """`allOf` as one schema: properties and required joined, equal keywords kept. Raises where they contradict."""
    result = {k: v for k, v in schema.items() if k != "allOf"}
    parts = schema.get("allOf", [])
    if not isinstance(parts, list):
        raise SchemaError("allOf is a list of schemas", where=f"{at}/allOf")
    for part in parts:
        if part is True:
            continue
        if not isinstance(part, Mapping):
            raise SchemaError("a schema is an object", where=f"{at}/allOf")
        part = merged(part, at) if "allOf" in part else part
        for word, value in part.items():
            if word == "properties" and word in result:
                shared = {n for n in value if n in result[word] and result[word][n] != value[n]}
                if shared:
                    raise SchemaError(f"two schemas of '{sorted(shared)[0]}'", where=f"{at}/allOf")
                result[word] = {**result[word], **value}
            elif word == "required" and word in result:
                result[word] = [*result[word], *(name for name in value if name not in result[word])]
            elif word in result and result[word] != value and word in ASSERTIONS:
                raise SchemaError(f"'{word}' is given twice", where=f"{at}/allOf/{word}")
            else:
                result[word] = value
    return result


def disjoint(first: Any, second: Any) -> bool:
    """Whether two schemas surely share no value: by type, by constants, or by a property's constant."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return False
    values = [s["enum"] if "enum" in s else [s["const"]] if "const" in s else None for s in (first, second)]
    if values[0] is not None and values[1] is not None:
        return not any(a == b and type_of(a) & type_of(b) for a in values[0] for b in values[1])
    kinds = []
    for schema, known in zip((first, second), values):
        given = schema.get("type")
        found = set().union(*map(type_of, known)) if known is not None else {given} if isinstance(given, str) else given
        kinds.append(set(found) | ({"integer"} if found and "number" in found else set()) if found else None)
    if kinds[0] is not None and kinds[1] is not None and not kinds[0] & kinds[1]:
        return True
    shared = set(first.get("required", ())) & set(second.get("required", ()))
    both = [schema.get("properties", {}) for schema in (first, second)]
    return any(name in both[0] and name in both[1] and disjoint(both[0][name], both[1][name]) for name in shared)


def resolve(root: Any, pointer: Any, at: str) -> Any:
    """What a reference "#/a/b" leads to. Raises `SchemaError` for one that leads nowhere or outside."""
    if not isinstance(pointer, str) or (pointer != "#" and not pointer.startswith("#/")):
        raise SchemaError("only references within the schema are followed, as #/…", where=f"{at}/$ref")
    found = root
    for part in unquote(pointer[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise SchemaError(f"the reference {pointer} leads nowhere", where=f"{at}/$ref")
    return found
