"""JSON Schema as an automaton: what it accepts is JSON that is valid under the schema.

Properties come in the order in which the schema lists them, and further properties are not written although the schema
may allow them; a space may follow a comma or a colon. Values without a schema, and references that lead back to
themselves, nest to a fixed depth, or to a smaller one where the automaton would be too large. A keyword that could be
broken unnoticed (`not`, `if`, `dependentRequired`, `uniqueItems` of open values, …) is refused with its place, before
anything is generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from core.inference.constrained import numbers
from core.inference.constrained.automaton import Automaton, Builder, Piece, TooLargeError
from core.inference.constrained.schema_parts import (
    ASSERTIONS,
    SchemaError,
    check,
    disjoint,
    free_keys,
    merged,
    outside,
    resolve,
    type_of,
    utf8,
)

__all__ = ["SchemaError", "compile_schema", "resolve"]

DEPTH = 3
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
LONGEST = 4096
Made = TypeVar("Made")


def compile_schema(schema: Mapping[str, Any] | bool) -> Automaton:
    """The automaton of a schema.

    Raises:
        SchemaError: what is not supported, or no value is valid. TooLargeError: even where nothing nests.
    """

    def made(depth: int) -> Automaton:
        compiler = Compiler(schema)
        piece = compiler.value(schema, "#", depth)
        if piece is None:
            raise SchemaError("no value is valid under this schema", where="#")
        return Automaton(compiler.b, piece)

    return deepest(made)


def deepest(made: Callable[[int], Made]) -> Made:
    """`made(depth)` for the greatest depth of open parts whose automaton is not too large."""
    for depth in range(DEPTH, -1, -1):
        try:
            return made(depth)
        except TooLargeError:
            if depth == 0:
                raise
        except RecursionError:
            raise SchemaError("the schema is nested too deep", where="#") from None
    raise AssertionError("unreachable")


class Compiler:
    """Pieces for the parts of one schema.

    Args:
        root: the whole schema, where references lead.
    """

    ESCAPED = '"\\/bfnrt'
    """What may follow a backslash."""

    def __init__(self, root: Any) -> None:
        self.b, self.root = Builder(), root
        self.open: list[str] = []

    # ---- dispatch ----------------------------------------------------------------------------------------------

    def value(self, schema: Any, at: str, depth: int) -> Piece:
        """A value under `schema`, which stands at the pointer `at`; None when there is none."""
        if schema is True or schema == {}:
            return self.anything(depth)
        if schema is False:
            return None
        if not isinstance(schema, Mapping):
            raise SchemaError(f"a schema is an object, this is {type(schema).__name__}", where=at)
        check(schema, at)
        if "$ref" in schema:
            return self.reference(schema, at, depth)
        if "const" in schema or "enum" in schema:
            return self.constants(self._listed(schema, at))
        if "allOf" in schema:
            return self.value(merged(schema, at), at, depth)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self.alternatives(schema, word, at, depth)
        kinds = schema.get("type", self._guessed(schema))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds is None:
            return self.anything(depth)
        if not isinstance(kinds, list):
            raise SchemaError("a type is a name or a list of names", where=f"{at}/type")
        return self.b.either([self.typed(kind, schema, at, depth) for kind in kinds])

    def typed(self, kind: str, schema: Mapping[str, Any], at: str, depth: int) -> Piece:
        """A value of one type."""
        if kind not in TYPES:
            raise SchemaError(f"unknown type '{kind}'", where=f"{at}/type", hint=f"known: {', '.join(TYPES)}")
        if kind == "object":
            return self.object(schema, at, depth)
        if kind == "array":
            return self.array(schema, at, depth)
        if kind == "string":
            return self.string(schema, at)
        if kind in ("integer", "number"):
            return numbers.bounded(self.b, kind, schema, at)
        return self.constants([None] if kind == "null" else [True, False])

    @staticmethod
    def _guessed(schema: Mapping[str, Any]) -> str | None:
        if "properties" in schema or "required" in schema:
            return "object"
        if "items" in schema or "prefixItems" in schema:
            return "array"
        if "pattern" in schema or "minLength" in schema or "maxLength" in schema:
            return "string"
        return "number" if "minimum" in schema or "maximum" in schema else None

    # ---- scalars -----------------------------------------------------------------------------------------------

    def constants(self, values: Sequence[Any]) -> Piece:
        """Any of these values."""
        return self.b.texts(json.dumps(value, ensure_ascii=False) for value in values)

    def _listed(self, schema: Mapping[str, Any], at: str) -> list[Any]:
        """The values of `const` or `enum` that the rest of the schema accepts."""
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list) or not values:
            raise SchemaError("an enum is a list of values", where=f"{at}/enum")
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        fitting = [value for value in values if kinds is None or type_of(value) & set(kinds)]
        if "const" in schema:
            one = schema["const"]
            fitting = [value for value in fitting if value == one and type_of(value) & type_of(one)]
        rest = {word: schema[word] for word in ASSERTIONS if word in schema and word not in ("const", "enum", "type")}
        if not rest or not fitting:
            return fitting
        if not {"$ref", "allOf", "anyOf", "oneOf"} & set(rest):
            rest["type"] = sorted(set().union(*map(type_of, fitting)))
        other = Compiler(self.root)
        piece = other.value(rest, at, DEPTH)
        accepts = Automaton(other.b, piece).accepts_text if piece is not None else lambda text: False
        return [value for value in fitting if accepts(json.dumps(value, ensure_ascii=False))]

    def string(self, schema: Mapping[str, Any], at: str) -> Piece:
        """A string, its length in characters between bounds."""
        if "pattern" in schema:
            from core.inference.constrained.pattern import pattern_piece

            if "minLength" in schema or "maxLength" in schema:
                raise SchemaError("a pattern with length bounds is not supported", where=f"{at}/pattern")
            return self.quoted(lambda quote: pattern_piece(self.b, schema["pattern"], f"{at}/pattern", quote))
        least, most = self._counts(schema, at, "minLength", "maxLength")
        return self.text(least, most)

    def text(self, least: int, most: int | None) -> Piece:
        """A string of any characters, so many of them."""
        return self.quoted(lambda quote: self.times(lambda: self.character(quote), least, most))

    def quoted(self, body: Callable[[str], Piece]) -> Piece:
        """A string whose inside is `body(quote)`."""
        return self.b.sequence([self.b.text('"'), body('"'), self.b.text('"')])

    def character(self, quote: str) -> Piece:
        """One character of a string: as it is, or escaped."""
        start, end = utf8(self.b)
        self.b.edges[start] += [(low, high, end) for low, high in outside(0x20, 0x7E, (ord(quote), 0x5C))]
        escaped = self.b.state()
        self.b.edges[start].append((0x5C, 0x5C, escaped))
        self.b.edges[escaped] += [(ord(c), ord(c), end) for c in self.ESCAPED]
        return start, end

    # ---- composites --------------------------------------------------------------------------------------------

    def object(self, schema: Mapping[str, Any], at: str, depth: int) -> Piece:
        """An object with the listed properties in their order, those that are not required optional."""
        if (free := free_keys(schema, at)) is not None:
            return self._map(free, at, depth, *self._counts(schema, at, "minProperties", "maxProperties"))
        return self.properties(schema, at, depth, self.member, ("{", "}"))

    def properties(
        self, schema: Mapping[str, Any], at: str, depth: int, member: Callable[..., Piece], around: tuple[str, str]
    ) -> Piece:
        """The listed properties between brackets, each as `member(name, value)` writes it."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        listed = {name: (properties[name], f"{at}/properties/{_escaped(name)}") for name in properties}
        for name in required:
            if name not in listed:
                listed[name] = (schema.get("additionalProperties", True), f"{at}/additionalProperties")
        members = []
        for name, (inner, place) in listed.items():
            members.append((name in required, member(name, self.value(inner, place, depth))))
        return self._members(members, *self._counts(schema, at, "minProperties", "maxProperties"), around)

    def member(self, name: str, value: Piece) -> Piece:
        """A key and its value."""
        return self.b.sequence([self.constants([name]), self.b.text(":"), self._space(), value])

    def _members(
        self, members: list[tuple[bool, Piece]], least: int, most: int | None, around: tuple[str, str] = ("{", "}")
    ) -> Piece:
        """Members in order between brackets, each there or not; states count those written as far as bounds ask."""
        b = self.b
        counting = least > sum(must for must, _ in members) or (most is not None and most < len(members))
        cap = max(least, (most or 0) + 1) if counting else 1
        start, end = b.text(around[0]), b.text(around[1])
        assert start is not None and end is not None
        places = {0: start[1]}
        for must, piece in members:
            following: dict[int, int] = {} if must else dict(places)
            written: dict[int, tuple[int, int]] = {}
            for count, place in places.items():
                if piece is None or (most is not None and count >= most):
                    continue
                reached = min(count + 1, cap)
                if reached not in written:
                    written[reached] = b.copy(piece) if written else piece
                comma = b.sequence([b.text(","), self._space()]) if count else b.nothing()
                assert comma is not None
                b.jumps[place].append(comma[0])
                b.jumps[comma[1]].append(written[reached][0])
            for reached, (_, after) in written.items():
                joined = b.state()
                b.jumps[after].append(joined)
                if reached in following:
                    b.jumps[following[reached]].append(joined)
                following[reached] = joined
            places = following
        for count, place in places.items():
            if count >= min(least, cap):
                b.jumps[place].append(end[0])
        return (start[0], end[1]) if any(count >= min(least, cap) for count in places) else None

    def _map(self, more: Any, at: str, depth: int, least: int, most: int | None) -> Piece:
        """An object with any keys. Past the depth it is empty."""
        if depth <= 0:
            return self.b.text("{}") if least == 0 else None

        def member() -> Piece:
            inner = self.value(more, f"{at}/additionalProperties", depth - 1)
            return self.b.sequence([self.text(1, None), self.b.text(":"), self._space(), inner])

        return self.listed("{", "}", member, least, most)

    def array(self, schema: Mapping[str, Any], at: str, depth: int) -> Piece:
        least, most = self._counts(schema, at, "minItems", "maxItems")
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):
            items, first = schema.get("additionalItems", True), items
        if not isinstance(first, list):
            raise SchemaError("prefixItems is a list of schemas", where=f"{at}/prefixItems")
        if schema.get("uniqueItems"):
            return self._unique(items, at, least, most)
        if first:
            pieces: list[Piece] = []
            for number, inner in enumerate(first):
                comma = [self.b.text(","), self._space()] if number else []
                pieces.append(self.b.sequence([*comma, self.value(inner, f"{at}/prefixItems/{number}", depth)]))
            if least > len(first):
                raise SchemaError("minItems beyond prefixItems is not supported", where=f"{at}/minItems")
            count = len(first) if most is None else min(most, len(first))
            return self.b.sequence([self.b.text("["), *pieces[:count], self.b.text("]")])
        if (schema.get("items") is None or items is True) and depth <= 0:
            return self.b.text("[]") if least == 0 else None
        inner_depth = depth - 1 if schema.get("items") is None else depth
        return self.listed("[", "]", lambda: self.value(items, f"{at}/items", inner_depth), least, most)

    def _unique(self, items: Any, at: str, least: int, most: int | None) -> Piece:
        """Different values of an enum, in its order."""
        if not isinstance(items, Mapping) or not isinstance(items.get("enum"), list):
            if most == 1:
                return self.listed("[", "]", lambda: self.value(items, f"{at}/items", 0), least, most)
            raise SchemaError("uniqueItems needs items with an enum", where=f"{at}/uniqueItems")
        values = list({json.dumps(v, ensure_ascii=False): v for v in items["enum"]}.values())
        return self._members([(False, self.constants([value])) for value in values], least, most, ("[", "]"))

    def listed(self, left: str, right: str, item: Any, least: int, most: int | None) -> Piece:
        """From `least` to `most` items between brackets."""
        b = self.b

        def further() -> Piece:
            return b.sequence([b.text(","), self._space(), item()])

        empty = b.sequence([b.text(left), b.text(right)]) if least == 0 else None
        if most == 0:
            return empty
        one = item()
        if one is None:
            return empty
        if most is None and least <= 1:
            comma = b.sequence([b.text(","), self._space()])
            assert comma is not None
            b.jumps[one[1]].append(comma[0])
            b.jumps[comma[1]].append(one[0])
            return b.either([empty, b.sequence([b.text(left), one, b.text(right)])])
        rest = self.times(further, max(least - 1, 0), None if most is None else most - 1)
        return b.either([empty, b.sequence([b.text(left), one, rest, b.text(right)])])

    def alternatives(self, schema: Mapping[str, Any], word: str, at: str, depth: int) -> Piece:
        """Any of the schemas."""
        found = enumerate(self.branches(schema, word, at))
        return self.b.either([self.value(branch, f"{at}/{word}/{n}", depth) for n, branch in found])

    @staticmethod
    def branches(schema: Mapping[str, Any], word: str, at: str) -> list[dict[str, Any]]:
        """What `anyOf` or `oneOf` lists, each with all that stands beside.

        Of `oneOf` only branches that no other can share a value with are accepted.
        """
        given = schema[word]
        if not isinstance(given, list) or not given:
            raise SchemaError(f"{word} is a list of schemas", where=f"{at}/{word}")
        common = {k: v for k, v in schema.items() if k != word}
        branches = [merged({"allOf": [common, branch]}, f"{at}/{word}/{n}") for n, branch in enumerate(given)]
        if word == "oneOf":
            for n, branch in enumerate(branches):
                for m in range(n):
                    if not disjoint(branch, branches[m]):
                        raise SchemaError(
                            f"branches {m} and {n} of oneOf may share a value",
                            where=f"{at}/oneOf/{n}",
                            hint="use anyOf, or give the branches different types or constants",
                        )
        return branches

    def reference(self, schema: Mapping[str, Any], at: str, depth: int) -> Piece:
        """What a reference within the schema leads to; one that is open already uses up depth."""
        pointer, target = schema["$ref"], self.target(schema, at)
        within = self.open.count(pointer)
        if within and depth - within < 0:
            return None
        self.open.append(pointer)
        try:
            return self.value(target, pointer, depth)
        finally:
            self.open.pop()

    def target(self, schema: Mapping[str, Any], at: str) -> Any:
        """The schema that a reference leads to, with what stands beside the reference."""
        target = resolve(self.root, schema["$ref"], at)
        beside = {word: schema[word] for word in ASSERTIONS if word in schema and word != "$ref"}
        return merged({"allOf": [target, beside]}, at) if beside else target

    def anything(self, depth: int) -> Piece:
        """Any JSON value, nested at most `depth` deep."""
        scalars = [self.typed(kind, {}, "#", depth) for kind in ("string", "number", "boolean", "null")]
        if depth <= 0:
            return self.b.either(scalars)
        inner = depth - 1
        array = self.listed("[", "]", lambda: self.anything(inner), 0, None)
        return self.b.either([*scalars, array, self._map(True, "#", depth, 0, None)])

    # ---- helpers -----------------------------------------------------------------------------------------------

    def _space(self) -> Piece:
        return self.b.optional(self.b.text(" "))

    def times(self, make: Any, least: int, most: int | None) -> Piece:
        """`make()` repeated; a bound above is unrolled."""
        b = self.b
        if most is not None and most > LONGEST:
            most = None
        head = [make() for _ in range(least)]
        if most is None:
            return b.sequence([*head, b.repeat(make())])
        tail = b.nothing()
        for _ in range(most - least):
            tail = b.optional(b.sequence([make(), tail]))
        return b.sequence([*head, tail])

    def _counts(self, schema: Mapping[str, Any], at: str, low: str, high: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for word, value in ((low, least), (high, most)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise SchemaError("a count is a whole number from 0 on", where=f"{at}/{word}")
        if most is not None and most < least:
            raise SchemaError(f"{low} is above {high}", where=f"{at}/{low}")
        return least, most


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
