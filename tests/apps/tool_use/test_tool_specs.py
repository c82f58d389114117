"""Tools read from every description, and what is said of those that are none."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Literal

import pytest

from apps.tool_use.functions import from_function
from apps.tool_use.openapi import from_openapi
from apps.tool_use.schema import check_schema, problem
from apps.tool_use.spec import (
    as_spec,
    check_tools,
    from_bfcl,
    from_chat,
    from_toolbench,
    python_type,
)
from core.errors import AppInputError, DataError


def book(city: str, guests: int = 2, tags: list[str] | None = None, kind: Literal["a", "b"] = "a") -> str:
    """Book a table.

    More text.

    Args:
        city: where to eat
        guests (int): how many
    """
    return city


def test_a_function_by_its_signature_and_docstring():
    spec = from_function(book)
    assert (spec.name, spec.description, spec.required) == ("book", "Book a table.", ["city"])
    assert spec.properties["city"] == {"type": "string", "description": "where to eat"}
    assert spec.properties["guests"] == {"type": "integer", "description": "how many", "default": 2}
    assert spec.properties["tags"]["anyOf"] == [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]
    assert spec.properties["kind"]["enum"] == ["a", "b"]


def test_functions_that_cannot_be_described():
    def untyped(x):
        return x

    def starred(*args: int):
        return args

    def odd(x: complex):
        return x

    def placed(x: int, /):
        return x

    def unknown(x: Nowhere):  # noqa: F821
        return x

    def keyed(x: dict[int, str]):
        return x

    for function, part in (
        (untyped, "no type"),
        (starred, r"\*args"),
        (odd, "no JSON form"),
        (placed, "by its place"),
        (unknown, "Nowhere"),
        (keyed, "no texts"),
        (lambda x: x, "has none"),
        (partial(book, "Rome"), "has none"),
        (min, "cannot be read"),
    ):
        with pytest.raises(AppInputError, match=part):
            as_spec(function)


def test_pairs_are_pairs_and_a_default_that_json_has_not_is_left_out():
    def place(at: tuple[int, str], marks: tuple[int, ...] = (), key: Any = book):
        return at

    spec = from_function(place)
    check_schema(spec)
    assert problem(spec, {"at": [1, "a"]}) is None and problem(spec, {"at": [1, 2]}) and problem(spec, {"at": [1]})
    assert spec.properties["marks"]["items"] == {"type": "integer"} and "default" not in spec.properties["key"]
    assert json.dumps(spec.to_chat())


def test_the_leaderboards_types_go_both_ways():
    document = {"name": "f", "parameters": {"type": "dict", "required": ["a"], "properties": {
        "a": {"type": "float"}, "b": {"type": "tuple", "items": {"type": "any"}}, "c": {"type": "dict"},
    }}}  # fmt: skip
    spec = from_bfcl(document)
    assert spec.parameters["type"] == "object" and spec.properties["a"]["type"] == "number"
    assert spec.properties["b"]["type"] == "array" and "type" not in spec.properties["b"]["items"]
    assert [python_type(spec.properties[n]) for n in "abc"] == ["float", "tuple", "dict"]
    assert python_type({"type": "integer"}) == "integer" and python_type({}) == "any"
    assert "x-python-type" not in str(spec.to_chat())
    with pytest.raises(DataError, match="unknown type"):
        from_bfcl({"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": "colour"}}}})


def test_toolbench_names_and_types():
    entry = {
        "tool_name": "Big Tool!", "api_name": "2 Days Ago", "api_description": "d" * 400, "category_name": "Time",
        "required_parameters": [{"name": "N Days", "type": "NUMBER", "description": "x"}],
        "optional_parameters": [{"name": "flag", "type": "BOOLEAN"}, {"name": "o", "type": "ARRAY"}],
    }  # fmt: skip
    spec = from_toolbench(entry)
    assert spec.name == "get_2_days_ago_for_big_tool" and len(spec.description) == 256 and spec.category == "Time"
    assert [spec.properties[n]["type"] for n in ("n_days", "flag", "o")] == ["integer", "boolean", "string"]
    assert spec.required == ["n_days"]


PET = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FULL = {"name": "full", "in": "query", "schema": {"type": "boolean"}}
OPENAPI: dict[str, Any] = {
    "components": {"schemas": {"Pet": PET}},
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "schema": {"type": "integer"}}],
            "get": {"summary": "One pet", "parameters": [FULL]},
            "put": {"operationId": "save", "requestBody": {"content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/Pet"}}}}},
        }
    },
}  # fmt: skip


def test_openapi_operations():
    one, save = from_openapi(OPENAPI)
    assert one.name == "get_pets_id" and one.description == "One pet" and one.required == ["id"]
    assert set(one.properties) == {"id", "full"}
    assert save.name == "save" and set(save.properties) == {"id", "name"} and save.required == ["id", "name"]
    with pytest.raises(DataError, match="no paths"):
        from_openapi({})


def test_schemas_under_the_words_of_other_protocols():
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    for word in ("parameters", "input_schema", "inputSchema"):
        assert from_chat({"name": "f", word: schema}).parameters == schema


def test_tools_that_are_none():
    for entry, part in (
        ({}, "has a name"),
        ({"name": " "}, "has a name"),
        ({"name": "f", "parameters": {"type": "string"}}, "schema of an object"),
        ({"name": "f", "parameters": {"city": {"type": "string"}}}, "without a schema of an object"),
        ({"name": "f", "parameters": {"properties": ["x"]}}, "properties are an object of schemas"),
        ({"name": "f", "parameters": {"type": "object", "required": "x"}}, "required is a list"),
        ({"name": "\ud83d"}, "no text form"),
    ):
        with pytest.raises(DataError, match=part):
            from_chat(entry)
    with pytest.raises(DataError, match="two tools are called 'f'"):
        check_tools([from_chat({"name": "f"}), from_chat({"name": "f"})])
