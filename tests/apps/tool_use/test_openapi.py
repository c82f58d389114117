"""OpenAPI documents: what becomes of every part, in JSON and YAML, and what is said of parts that are none."""

from __future__ import annotations

import json
import time

import pytest

from apps.tool_use.catalogue import Catalogue
from apps.tool_use.openapi import from_openapi, openapi_operations
from apps.tool_use.schema import check_schema
from apps.tool_use.spec import tools_of
from core.errors import ConfigError, DataError

TEXT = {"type": "string"}


def posted(schema, media="application/json", **more):
    """A document with one operation that takes a body."""
    operation = {"operationId": "send", "requestBody": {"content": {media: {"schema": schema}}}}
    return {"openapi": "3.0.0", "paths": {"/send": {"post": operation}}, **more}


def asked(**operation):
    return {"openapi": "3.0.0", "paths": {"/a": {"get": operation}}}


def nested(branches):
    """A document whose schema holds itself `branches` times."""
    inner = {f"k{n}": {"$ref": "#/components/schemas/Node"} for n in range(branches)}
    schemas = {"Node": {"type": "object", "properties": inner}}
    return posted({"$ref": "#/components/schemas/Node"}, components={"schemas": schemas})


@pytest.mark.parametrize("branches", [1, 9, 40])
def test_a_schema_that_holds_itself_is_open_where_it_grows_too_large(branches):
    start = time.perf_counter()
    (tool,) = from_openapi(nested(branches))
    assert len(tool.properties) == branches and time.perf_counter() - start < 10
    inner = tool.properties["k0"]
    assert inner == {} if branches > 2000 else inner["type"] == "object"
    assert len(json.dumps(tool.parameters)) < 500_000


def test_a_body_is_arguments_where_it_is_an_object_and_one_argument_where_not():
    whole = {"allOf": [{"type": "object", "properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"b": TEXT}}]}
    (tool,) = from_openapi(posted(whole))
    assert set(tool.properties) == {"a", "b"} and tool.required == ["a"]
    for schema in ({"type": "array", "items": TEXT}, {"oneOf": [{"properties": {"a": TEXT}}, {"type": "null"}]}):
        ((tool, route),) = openapi_operations(posted(schema))
        assert tool.properties == {"body": schema} and route.places == {"body": ("whole",)}
    ((tool, route),) = openapi_operations(posted({"properties": {"id": {**TEXT, "readOnly": True}, "a": TEXT}}, "x/y"))
    assert set(tool.properties) == {"a"} and route.media == "x/y"


def test_an_argument_that_stands_in_two_places_is_sent_to_both():
    document = posted({"type": "object", "properties": {"id": TEXT}})
    document["paths"]["/send/{id}"] = item = document["paths"].pop("/send")
    item["parameters"] = [{"name": "id", "in": "path", "schema": TEXT}]
    ((tool, route),) = openapi_operations(document)
    assert route.places == {"id": ("path", "body")} and tool.required == ["id"]


def test_the_words_of_openapi_3_0_become_those_of_json_schema():
    schema = {"type": "number", "minimum": 0, "exclusiveMinimum": True, "exclusiveMaximum": False, "nullable": True}
    (tool,) = from_openapi(posted({"properties": {"n": schema, "nullable": {**TEXT, "enum": ["a"], "nullable": True}}}))
    assert tool.properties["n"] == {"type": ["number", "null"], "exclusiveMinimum": 0}
    assert tool.properties["nullable"] == {"type": ["string", "null"], "enum": ["a", None]}
    check_schema(tool)


def test_operations_without_an_id_have_names_of_their_own():
    paths = {"/a/{id}": {"get": {}}, "/a/id": {"get": None, "parameters": None}, "/a-id": {"get": {"summary": None}}}
    assert [tool.name for tool in from_openapi({"paths": paths})] == ["get_a_id", "get_a_id_2", "get_a_id_3"]


def test_references_to_references_and_parameters_with_content_are_followed():
    parameters = {"A": {"$ref": "#/x/B"}, "B": {"name": "q", "content": {"application/json": {"schema": TEXT}}}}
    (tool,) = from_openapi({**asked(parameters=[{"$ref": "#/x/A"}]), "x": parameters})
    assert tool.properties["q"]["type"] == "string"


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ([], "no paths"),
        ({"swagger": "2.0", "paths": {"/a": {}}}, "OpenAPI 2"),
        ({"paths": {"/a": {}}}, "no operations"),
        ({"paths": {"/a": []}}, "no object.*\n.*paths//a"),
        (asked(operationId=5), "operationId"),
        (asked(parameters={"x": 1}), "parameters are a list"),
        (asked(parameters=["x"]), "no object.*\n.*parameters/0"),
        (asked(parameters=[{"name": "x", "schema": None}]), "a name and a schema"),
        (asked(parameters=[{"name": "x", "in": "moon", "schema": {}}]), "unknown place"),
        (asked(requestBody="x"), "no object.*\n.*requestBody"),
        (asked(requestBody={"content": []}), "no object.*\n.*content"),
        (posted({"properties": {"a": {}}, "required": True}), "required is a list"),
        ({**asked(parameters=[{"$ref": "#/x/A"}]), "x": {"A": {"$ref": "#/x/A"}}}, "in a circle"),
        (asked(parameters=[{"$ref": "#/nowhere"}]), "leads nowhere"),
        (asked(parameters=[{"$ref": "other.yaml#/x"}]), "within the schema"),
    ],
)
def test_parts_of_the_wrong_kind_are_told_with_their_place(document, part):
    with pytest.raises((DataError, ConfigError), match=part):
        from_openapi(document)


YAML = """
openapi: 3.0.0
paths:
  /days:
    get:
      operationId: days
      parameters: [{name: since, in: query, schema: {type: string, example: 2020-01-01}}]
      responses: {200: {description: ok}}
"""


def test_yaml_is_read_like_json(tmp_path):
    (tool,) = tools_of(YAML)
    assert tool.name == "days" and tool.properties["since"]["example"] == "2020-01-01"
    (file := tmp_path / "api.yaml").write_text(YAML)
    assert Catalogue.from_file(file).ids == ["days"]
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 8)}]\n" for n in range(9)
    )
    for text, part in (("openapi: [", "not YAML.*line"), ("openapi: &a [*a]", "no JSON form"), (bomb, "too large")):
        with pytest.raises(DataError, match=part):
            tools_of(f"openapi: 3\n{text}" if text is bomb else text)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, "just words", "null", "3", "[]", "[[]]", '["f"]'])
def test_text_that_holds_no_tools_is_told(text):
    with pytest.raises(DataError):
        tools_of(text)
