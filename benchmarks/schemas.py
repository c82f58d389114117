"""Random JSON Schemas such as tool parameters have, and a few that they seldom have."""

from __future__ import annotations

import random
from typing import Any

NAMES = "name city date unit count price limit query tags user id active ratio items note x y größe".split()
PATTERNS = ("^[A-Z]{3}$", "^\\d{4}-\\d{2}-\\d{2}$", "^(on|off)$", "^[a-z]+@[a-z]+\\.(com|org)$", "ab+")


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema nested at most `depth` deep, an object at the top."""
    return _object(rng, depth)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0 if depth < 3 else 1, 5))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _any(rng, depth - 1) for name in names}}
    if rng.random() < 0.8:
        schema["required"] = [name for name in names if rng.random() < 0.6]
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    if rng.random() < 0.1:
        schema["minProperties"] = rng.randint(0, len(names))
    if rng.random() < 0.1:
        schema["maxProperties"] = max(len(schema.get("required", [])), schema.get("minProperties", 0), 1)
    return schema


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _string, _integer, _number, _boolean, _enum, _null, _const]
    if depth > 0:
        kinds += [_array, _array, _object, _union, _unique]
    made = rng.choice(kinds)
    return made(rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.2:
        schema["minLength"] = rng.randint(0, 4)
    if rng.random() < 0.2:
        schema["maxLength"] = rng.randint(schema.get("minLength", 0), 12)
    if len(schema) == 1 and rng.random() < 0.15:
        schema["pattern"] = rng.choice(PATTERNS)
    return schema


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    if rng.random() < 0.4:
        schema["minimum"] = rng.randint(-200, 200)
    if rng.random() < 0.4:
        schema["maximum"] = schema.get("minimum", -100) + rng.randint(0, 1000)
    if len(schema) == 3 and schema["maximum"] - schema["minimum"] > 20 and rng.random() < 0.3:
        schema["multipleOf"] = rng.randint(1, 7)
    return schema


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    if rng.random() < 0.4:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = round(rng.uniform(-5, 5), rng.randint(0, 3))
    if rng.random() < 0.4:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -3))
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = round(low + rng.uniform(0.01, 20), 3)
    return schema


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _null(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": ["null", "integer"]}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["celsius", "fahrenheit", 'quo"te', "ünï", 3, -1.5, True, None, ["a", 1]], 3)}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(["fixed", 7, {"a": [1, 2]}])}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _any(rng, depth - 1)}
    if rng.random() < 0.4:
        schema["minItems"] = rng.randint(0, 3)
    if rng.random() < 0.4:
        schema["maxItems"] = schema.get("minItems", 0) + rng.randint(0, 3)
    return schema


def _unique(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "uniqueItems": True, "maxItems": 3, "items": {"enum": ["a", "b", "c", "d"]}}


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"anyOf": [_any(rng, depth - 1), _any(rng, depth - 1)]}
    return {"oneOf": [_string(rng, 0), {"type": "integer"}, _array(rng, depth)]}
