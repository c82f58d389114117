"""OpenAPI 3 documents, JSON or YAML, as tools: one for each operation, all its arguments together.

Path, query, header and cookie parameters and the properties of an object in the body become arguments of one tool;
a body that is no object with properties is one argument of its own. Schemas come without references and in the words
of JSON Schema. Nothing here calls an operation.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.tool_use.spec import ToolSpec, check_tools, plain_name
from core.errors import DataError
from core.inference.constrained.schema_parts import merged, resolve

VERBS = ("get", "post", "put", "patch", "delete")
PLACES = ("path", "query", "header", "cookie")
JSON_BODY = "application/json"
DEEPEST, PARTS, LINKS = 6, 2000, 32
"""References followed within one another, objects of one schema, and references that lead to references, at most."""
LARGEST = 64 << 20
"""Characters of a document whose YAML was written out."""


@dataclass(frozen=True)
class Route:
    """Where an operation is called.

    Args:
        places: where each argument stands: path, query, header, cookie, body; "whole" is the body itself.
        media: type of the body.
    """

    verb: str
    path: str
    places: Mapping[str, tuple[str, ...]]
    media: str = JSON_BODY


def from_openapi(document: Any) -> list[ToolSpec]:
    """One tool for each operation of an OpenAPI 3 document.

    Raises:
        DataError: no paths, a part of the wrong kind or a reference that leads nowhere, with its place.
    """
    return [tool for tool, _ in openapi_operations(document)]


def openapi_operations(document: Any) -> list[tuple[ToolSpec, Route]]:
    """The tools of `from_openapi` with their routes."""
    given = document if isinstance(document, Mapping) else {}
    if "swagger" in given:
        hint = "convert it to OpenAPI 3, at converter.swagger.io or with swagger2openapi, say"
        raise DataError("the document is of OpenAPI 2", field="swagger", got=given["swagger"], hint=hint)
    if not isinstance(given.get("paths"), Mapping) or not given["paths"]:
        raise DataError("the document has no paths", field="paths", hint="give an OpenAPI 3 document")
    found: list[tuple[ToolSpec, Route]] = []
    for path, listed in given["paths"].items():
        item = _part(given, listed, f"paths/{path}")
        for verb in VERBS:
            if verb in item:
                found.append(_operation(given, str(path), verb, item, {tool.name for tool, _ in found}))
    if not found:
        raise DataError("the document has no operations", field="paths", expected=", ".join(VERBS))
    check_tools([tool for tool, _ in found])
    return found


def document_of(text: str) -> Any:
    """What a text holds: JSON, or an OpenAPI document in YAML. Raises `DataError` for anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if re.search(r"^(openapi|swagger)\s*:", text, re.M):
            return _yaml(text)
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"the tools are not JSON: {what}", hint="YAML is read of OpenAPI 3 alone") from error


def _yaml(text: str) -> Any:
    """A YAML document as JSON has it: dates become texts, names of any kind too."""
    import yaml

    try:
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        pieces, size = [], 0
        for piece in json.JSONEncoder(default=str).iterencode(value):
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST:
                raise DataError("the document is too large when its aliases are written out")
        return json.loads("".join(pieces))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise DataError(f"not YAML: {getattr(error, 'problem', None) or error}{line}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the YAML has no JSON form: {error}") from error


def _operation(
    document: Mapping[str, Any], path: str, verb: str, item: Mapping[str, Any], taken: set[str]
) -> tuple[ToolSpec, Route]:
    at = f"paths/{path}/{verb}"
    operation = _part(document, item[verb], at)
    properties: dict[str, Any] = {}
    places: dict[str, tuple[str, ...]] = {}
    required: list[str] = []

    def add(name: str, schema: Any, place: str, must: bool) -> None:
        properties[name] = schema
        places[name] = tuple(dict.fromkeys([*places.get(name, ()), place]))
        if must and name not in required:
            required.append(name)

    for place, number, given in _parameters(item, operation, path, verb):
        parameter = _part(document, given, f"{place}/{number}")
        schema = parameter["schema"] if "schema" in parameter else _content(document, parameter, at)[1]
        name, where = parameter.get("name"), parameter.get("in", "query")
        if not isinstance(name, str) or not isinstance(schema, (Mapping, bool)):
            raise DataError("a parameter has a name and a schema", field=f"{place}/{number}", got=given)
        if where not in PLACES:
            raise DataError("unknown place", field=f"{place}/{number}/in", got=where, expected=", ".join(PLACES))
        said = {"description": str(parameter.get("description") or "")}
        add(name, said | _object(_inlined(document, schema)), where, bool(parameter.get("required")) or where == "path")
    body = _part(document, operation.get("requestBody"), f"{at}/requestBody")
    media, schema = _content(document, body, f"{at}/requestBody")
    whole = _object(_inlined(document, {} if schema is None else schema))
    if "allOf" in whole:
        whole = merged(whole, f"{at}/requestBody")
    listed = whole.get("properties")
    if isinstance(listed, Mapping) and not {"anyOf", "oneOf"} & set(whole):
        needed = whole.get("required") or []
        if not isinstance(needed, list):
            raise DataError("required is a list of names", field=f"{at}/requestBody", got=needed)
        for name, inner in listed.items():
            if not (isinstance(inner, Mapping) and inner.get("readOnly") is True):
                add(name, inner, "body", name in needed)
    elif schema is not None:
        add("request_body" if "body" in places else "body", whole, "whole", bool(body.get("required")))
    text = str(operation.get("summary") or operation.get("description") or "")
    tool = ToolSpec(
        _name(operation, path, verb, taken), text, {"type": "object", "properties": properties, "required": required}
    )
    return tool, Route(verb, path, places, media)


def _name(operation: Mapping[str, Any], path: str, verb: str, taken: set[str]) -> str:
    """The operation's id, or one made of verb and path that no earlier tool has."""
    name = operation.get("operationId")
    if name is not None:
        if not isinstance(name, str) or not name.strip():
            raise DataError("an operationId is a text", field=f"paths/{path}/{verb}/operationId", got=name)
        return name
    made, count = re.sub("_+", "_", plain_name(f"{verb}_{path}")), 1
    while (name := made if count == 1 else f"{made}_{count}") in taken:
        count += 1
    return name


def _parameters(
    item: Mapping[str, Any], operation: Mapping[str, Any], path: str, verb: str
) -> list[tuple[str, int, Any]]:
    """(pointer of the list, number, parameter) of the path's parameters and the operation's own."""
    found = []
    for owner, at in ((item, f"paths/{path}/parameters"), (operation, f"paths/{path}/{verb}/parameters")):
        listed = owner.get("parameters") or []
        if not isinstance(listed, list):
            raise DataError("parameters are a list", field=at, got=listed)
        found += [(at, number, given) for number, given in enumerate(listed)]
    return found


def _content(document: Mapping[str, Any], owner: Mapping[str, Any], at: str) -> tuple[str, Any]:
    """(media type, schema) of what a body or a parameter may be; JSON where there is a choice, None for no schema."""
    content = _part(document, owner.get("content"), f"{at}/content")
    media = next((name for name in content if "json" in str(name)), next(iter(content), JSON_BODY))
    return str(media), _part(document, content.get(media), f"{at}/content/{media}").get("schema")


def _part(document: Mapping[str, Any], given: Any, at: str) -> Mapping[str, Any]:
    """An object of the document, behind its references; empty where nothing was given."""
    for _ in range(LINKS):
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise DataError("this is no object", field=at, got=given)
        if not isinstance(given.get("$ref"), str):
            return given
        given = resolve(document, given["$ref"], at)
    raise DataError("the references lead in a circle", field=at, got=given)


def _object(schema: Any) -> dict[str, Any]:
    """A schema as an object: true says nothing, false that no value is right."""
    return dict(schema) if isinstance(schema, Mapping) else {} if schema is True else {"not": {}}


def _inlined(document: Mapping[str, Any], schema: Any) -> Any:
    """The schema without references: as deep as `PARTS` objects reach, then open."""
    for depth in range(DEEPEST, 0, -1):
        try:
            return _without_references(document, schema, depth, [PARTS])
        except OverflowError:
            continue
    return _without_references(document, schema, 0, [sys.maxsize])


def _without_references(document: Mapping[str, Any], schema: Any, depth: int, left: list[int]) -> Any:
    """Raises `OverflowError` where more than `left[0]` objects are made."""
    if isinstance(schema, list):
        return [_without_references(document, item, depth, left) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    left[0] -= 1
    if left[0] < 0:
        raise OverflowError
    if isinstance(schema.get("$ref"), str):
        if not depth:
            return {}
        return _without_references(document, resolve(document, schema["$ref"], "openapi"), depth - 1, left)
    made = {word: _without_references(document, value, depth, left) for word, value in schema.items()}
    return _modern(made)


def _modern(schema: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI 3.0 says in its own words, in those of JSON Schema: `nullable`, and bounds that are left out."""
    for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(word), bool):
            exclusive = schema.pop(word)
            if exclusive and bound in schema:
                schema[word] = schema.pop(bound)
    if schema.get("nullable") is True:
        del schema["nullable"]
        if isinstance(schema.get("type"), str):
            schema["type"] = [schema["type"], "null"]
            if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
                schema["enum"] = [*schema["enum"], None]
    return schema
