"""JSON Schema as an automaton: what it accepts is JSON that is valid under the schema.

Properties come in the order in which the schema lists them, and further properties are not written although the schema
may allow them; a space may follow a comma or a colon. Values without a schema, and references that lead back to
themselves, nest to a fixed depth. A keyword that could be broken unnoticed (`not`, `if`, `dependentRequired`,
`uniqueItems` of open values, …) is refused with its place, before anything is generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.inference.constrained import numbers
from core.inference.constrained.automaton import Automaton, Builder, Piece
from core.inference.constrained.schema_parts import (
    SchemaError,
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
REFUSED = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains",
    "propertyNames", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
LONGEST = 4096


def compile_schema(schema: Mapping[str, Any] | bool) -> Automaton:
    """The automaton of a schema. Raises `SchemaError` for what is not supported, or when no value is valid."""
    compiler = Compiler(schema)
    piece = compiler.value(schema, "#", DEPTH)
    if piece is None:
        raise SchemaError("no value is valid under this schema", where="#")
    return Automaton(compiler.b, piece)


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
        for word in REFUSED:
            if word in schema:
                raise SchemaError(f"'{word}' is not supported", where=f"{at}/{word}", hint="leave it out")
        if "$ref" in schema:
            return self.reference(schema, at, depth)
        if "const" in schema:
            return self.constants([schema["const"]])
        if "enum" in schema:
            return self.constants(self._of_type(schema["enum"], schema, at))
        if "allOf" in schema:
            return self.value(merged(schema, at), at, depth)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self.alternatives(schema, word, at, depth)
        kinds = schema.get("type", self._guessed(schema))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds is None:
            return self.anything(depth)
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
            return self.number(kind, schema, at)
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
        return self.b.either([self.b.text(json.dumps(value, ensure_ascii=False)) for value in values])

    @staticmethod
    def _of_type(values: Any, schema: Mapping[str, Any], at: str) -> list[Any]:
        if not isinstance(values, list) or not values:
            raise SchemaError("an enum is a list of values", where=f"{at}/enum")
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return [value for value in values if kinds is None or type_of(value) & set(kinds)]

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

    def number(self, kind: str, schema: Mapping[str, Any], at: str) -> Piece:
        low, high = schema.get("minimum"), schema.get("maximum")
        open_low = open_high = False
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            given = schema.get(word)
            if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
                raise SchemaError("a bound is a number", where=f"{at}/{word}")
        if above is not None and (low is None or above >= low):
            low, open_low = above, True
        if below is not None and (high is None or below <= high):
            high, open_high = below, True
        step = schema.get("multipleOf")
        first, last = numbers.scaled(low, high, open_low, open_high, 0)
        if step is not None:
            whole = isinstance(step, int) or float(step).is_integer()
            found = numbers.multiples(first, last, int(step)) if whole and step >= 1 else None
            if found is None or len(found) > LONGEST:
                raise SchemaError(
                    "multipleOf needs a whole step and bounds",
                    where=f"{at}/multipleOf",
                    hint="give minimum and maximum",
                )
            return self.constants(list(found))
        if kind == "integer":
            return numbers.integer(self.b, first, last)
        return numbers.number(self.b, low, high, open_low, open_high)

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
                    written[reached] = self._copy(piece) if written else piece
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

    def _copy(self, piece: tuple[int, int]) -> tuple[int, int]:
        """The same piece on states of its own."""
        b = self.b
        names: dict[int, int] = {}
        waiting = [piece[0], piece[1]]
        while waiting:
            state = waiting.pop()
            if state in names:
                continue
            names[state] = b.state()
            waiting += [target for _, _, target in b.edges[state]] + b.jumps[state]
        for state, own in names.items():
            b.edges[own] = [(low, high, names[target]) for low, high, target in b.edges[state]]
            b.jumps[own] = [names[target] for target in b.jumps[state]]
        return names[piece[0]], names[piece[1]]

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
        """Any of the schemas. Of `oneOf` only those that no other can share a value with are accepted."""
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
        return self.b.either([self.value(branch, f"{at}/{word}/{n}", depth) for n, branch in enumerate(branches)])

    def reference(self, schema: Mapping[str, Any], at: str, depth: int) -> Piece:
        """What a reference within the schema leads to; one that is open already uses up depth."""
        pointer = schema["$ref"]
        target = resolve(self.root, pointer, at)
        within = self.open.count(pointer)
        if within and depth - within < 0:
            return None
        self.open.append(pointer)
        try:
            return self.value(target, pointer, depth)
        finally:
            self.open.pop()

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
