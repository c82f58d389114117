"""Calls of Python functions as an automaton: `name(argument=value, …)`, the arguments valid under a JSON Schema.

Values are Python's literals of what JSON can say. Strings stand in quotes of either kind, as `repr` chooses between
them. An argument whose name Python does not take as one is written `**{'the-name': value}`.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.inference.constrained.automaton import Piece
from core.inference.constrained.json_schema import DEPTH, Compiler
from core.inference.constrained.schema_parts import check, free_keys, merged


def is_name(text: str) -> bool:
    """Whether Python reads the text as a name, and as this one."""
    return text.isidentifier() and not keyword.iskeyword(text) and unicodedata.normalize("NFKC", text) == text


class PythonCompiler(Compiler):
    """Pieces for the parts of one schema, their values as Python writes them."""

    ESCAPED = "\"'\\bfnrt"

    def call(self, name: str, schema: Mapping[str, Any], at: str, depth: int = DEPTH) -> Piece:
        """A call of the function with arguments that are valid under `schema`, an object's."""
        return self.b.sequence([self.b.text(name), self.arguments(schema, at, depth)])

    def arguments(self, schema: Mapping[str, Any], at: str, depth: int) -> Piece:
        """Named arguments in parentheses, in the order in which the schema lists them."""
        b = self.b
        schema = merged(schema, at) if "allOf" in schema else schema
        check(schema, at)
        if "$ref" in schema:
            return self.arguments(self.target(schema, at), schema["$ref"], depth)
        if "enum" in schema or "const" in schema:
            return b.sequence([b.text("(**"), self.value(schema, at, depth), b.text(")")])
        for word in ("anyOf", "oneOf"):
            if word in schema:
                found = enumerate(self.branches(schema, word, at))
                return b.either([self.arguments(branch, f"{at}/{word}/{n}", depth) for n, branch in found])
        if free_keys(schema, at) is None:
            return self.properties(schema, at, depth, self.argument, ("(", ")"))
        least = self._counts(schema, at, "minProperties", "maxProperties")[0]
        several = b.sequence([b.text("(**"), self.object(schema, at, depth), b.text(")")])
        return b.either([b.text("()") if least == 0 else None, several])

    def argument(self, name: str, value: Piece) -> Piece:
        """A name and its value."""
        if is_name(name):
            return self.b.sequence([self.b.text(f"{name}="), value])
        return self.b.sequence([self.b.text("**{"), self.member(name, value), self.b.text("}")])

    def constants(self, values: Sequence[Any]) -> Piece:
        return self.b.either([self.literal(value) for value in values])

    def literal(self, value: Any) -> Piece:
        """One value. Numbers, words and brackets as `repr` has them, strings in either quotes."""
        b = self.b
        if isinstance(value, str):
            return self.quoted(lambda quote: b.text(_escaped(value, quote)))
        if isinstance(value, list):
            return self._members([(True, self.literal(item)) for item in value], 0, None, ("[", "]"))
        if isinstance(value, Mapping):
            return self._members([(True, self.member(k, self.literal(v))) for k, v in value.items()], 0, None)
        return b.text(repr(value))

    def quoted(self, body: Callable[[str], Piece]) -> Piece:
        b = self.b
        return b.either([b.sequence([b.text(quote), body(quote), b.text(quote)]) for quote in ("'", '"')])


def _escaped(text: str, quote: str) -> str:
    """The inside of a literal between such quotes."""
    return "".join("\\" + c if c in (quote, "\\") else c if c in "'\"" else repr(c)[1:-1] for c in text)
