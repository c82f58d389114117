"""Arguments against a tool's JSON Schema, by the package jsonschema: what is wrong, and where in the arguments."""

from __future__ import annotations

import re
from typing import Any

from apps.tool_use.spec import ToolSpec
from core.errors import BackendUnavailable, DataError


def library() -> tuple[Any, Any]:
    """jsonschema's validator class and `best_match`. Raises `BackendUnavailable` when it is not installed."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError as error:
        raise BackendUnavailable("jsonschema is not installed", hint="pip install 'graft[tool_use]'") from error
    return Draft202012Validator, best_match


def check_schema(tool: ToolSpec) -> None:
    """Raise `DataError` with the JSON pointer of what is no schema of an object: an unknown type, say."""
    kind = tool.parameters.get("type", "object")
    if kind != "object":
        raise DataError(
            "a tool's parameters are a schema of an object", field=f"{tool.name}#/type", got=kind, expected="object"
        )
    cls, _ = library()
    from jsonschema import SchemaError

    try:
        cls.check_schema(tool.parameters)
    except SchemaError as error:
        raise DataError(
            "not a JSON Schema", field=f"{tool.name}#{pointer(error)}", got=error.instance, expected=error.message
        ) from error


def problem(tool: ToolSpec, arguments: Any) -> str | None:
    """What makes `arguments` invalid for the tool, with its JSON pointer; None when they are valid.

    Raises:
        DataError: the schema itself cannot be used: an unknown type, a reference that leads nowhere or elsewhere.
    """
    cls, best_match = library()
    from jsonschema.exceptions import UnknownType
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # An empty registry: jsonschema's own would fetch references to other documents over the network.
    validator = cls({"type": "object", **tool.parameters}, registry=Registry())
    try:
        error = best_match(validator.iter_errors(arguments))
    except UnknownType as unknown:
        raise DataError("unknown type", field=f"{tool.name}#", got=unknown.type) from unknown
    except (Unresolvable, re.error, RecursionError) as unusable:
        what = str(unusable).splitlines()[0] or type(unusable).__name__
        raise DataError(f"the tool's schema cannot be used: {what}", field=f"{tool.name}#") from unusable
    return None if error is None else f"{pointer(error) or '/'}: {error.message}"


def pointer(error: Any) -> str:
    """JSON pointer of the place that an error of jsonschema speaks of."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in error.absolute_path)
