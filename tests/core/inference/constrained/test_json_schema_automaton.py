"""Schemas as automata: what they accept is valid, what is invalid they reject, what they cannot keep they refuse."""

from __future__ import annotations

import functools
import json
import random
import re
import time

import jsonschema
import pytest

from benchmarks.schemas import random_schema
from core.inference.constrained.automaton import Automaton, Builder, TooLargeError
from core.inference.constrained.json_schema import SchemaError, compile_schema
from core.inference.constrained.numbers import integer, number
from core.inference.constrained.pattern import pattern_piece

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "ü"]}, "maxItems": 2},
    },
    "required": ["name"],
}


@pytest.mark.parametrize(
    "text, accepted",
    [
        ('{"name":"x"}', True),
        ('{"name": "x", "age": 150, "tags": ["a", "ü"]}', True),
        ('{"name":"é\\n\\"","tags":[]}', True),
        ('{"name":""}', False),
        ('{"age":3,"name":"x"}', False),
        ('{"name":"x","age":151}', False),
        ('{"name":"x","age":03}', False),
        ('{"name":"x","age":3.0}', False),
        ('{"name":"x",}', False),
        ('{"name":"x"', False),
        ('{"name":"x"} ', False),
        ('{"name":"\n"}', False),
        ('{"name":"x","tags":["a","a","a"]}', False),
        ('{"age":3}', False),
    ],
)
def test_an_object_by_hand(text, accepted):
    assert compile_schema(PERSON).accepts_text(text) == accepted


@pytest.mark.parametrize("low, high", [(-25, 37), (0, 9), (5, 5), (99, 1203), (-7, -7), (-120, -3), (10, 100)])
def test_integers_between_bounds_are_those_integers(low, high):
    b = Builder()
    automaton = Automaton(b, integer(b, low, high))
    for value in range(low - 130, high + 130):
        assert automaton.accepts_text(str(value)) == (low <= value <= high), value
    for text in ("", "-", "-0" if low < 0 else "00", "007", "1.0", "+1"):
        assert not automaton.accepts_text(text) or low <= int(text) <= high and text == str(int(text))


@pytest.mark.parametrize(
    "low, high, open_low, open_high",
    [
        (0.2, 0.8, False, False),
        (-1.5, 2, True, False),
        (0, 1, True, True),
        (3, None, False, False),
        (None, -2.5, False, True),
    ],
)
def test_numbers_between_bounds_never_leave_them(low, high, open_low, open_high):
    b = Builder()
    automaton = Automaton(b, number(b, low, high, open_low, open_high))
    rng, made = random.Random(0), 0
    for _ in range(300):
        text, state = "", automaton.start
        while not (automaton.accepts(state) and rng.random() < 0.3):
            moves = automaton.moves(state)
            if not moves or len(text) > 30:
                break
            byte = rng.choice(sorted(moves))
            text, state = text + chr(byte), moves[byte]
        if not automaton.accepts(state):
            continue
        value, made = json.loads(text), made + 1
        assert low is None or (value > low if open_low else value >= low), text
        assert high is None or (value < high if open_high else value <= high), text
    assert made > 100


@pytest.mark.parametrize("pattern", ["^a+b?$", "ab", "^[^a-c]{2}$", "^(x|yz)*$", "\\d{2}", '^["\\\\]$', "^é?[a-z]$"])
def test_patterns_are_those_of_python(pattern):
    b = Builder()
    automaton = Automaton(b, pattern_piece(b, pattern, "#"))
    letters = 'aabbcxyz19"\\é_ '
    rng, seen = random.Random(1), {True: 0, False: 0}
    for _ in range(4000):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 5)))
        inside = json.dumps(text, ensure_ascii=False)[1:-1]
        matches = re.search(pattern.replace("$", "\\Z"), text) is not None
        seen[matches] += 1
        assert automaton.accepts_text(inside) == matches, text
    assert min(seen.values()) > 5


def test_random_walks_of_random_schemas_are_valid():
    rng = random.Random(5)
    for _ in range(150):
        schema = random_schema(rng)
        automaton = compile_schema(schema)
        data, state = bytearray(), automaton.start
        while True:
            moves = automaton.moves(state)
            if automaton.accepts(state) and (not moves or rng.random() < 0.5):
                break
            nearer = [v for v, s in moves.items() if automaton.distance[s] < automaton.distance[state]]
            value = rng.choice(nearer if len(data) > 60 else sorted(moves))
            data.append(value)
            state = moves[value]
        jsonschema.Draft202012Validator(schema).validate(json.loads(data.decode("utf-8")))


def test_what_json_writes_is_accepted():
    schema = {
        "type": "object",
        "properties": {"any": {}, "map": {"type": "object", "additionalProperties": {"type": "number"}}},
    }
    automaton = compile_schema(schema)
    value = {"any": {"a": [1, {"b": None}], "é": "x"}, "map": {"k": 1.5, "l": -2}}
    assert automaton.accepts_text(json.dumps(value, ensure_ascii=False))
    assert automaton.accepts_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert not automaton.accepts_text('{"map": {"k": "x"}}')


def test_references_nest_to_a_depth():
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {
        "type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["v"],
    }}}  # fmt: skip
    automaton = compile_schema(tree)
    assert automaton.accepts_text('{"v":1,"next":{"v":2,"next":{"v":3}}}')
    assert not automaton.accepts_text('{"v":1,"next":{"next":{"v":3}}}')


@pytest.mark.parametrize(
    "schema, part",
    [
        ({"type": "objekt"}, "unknown type 'objekt'.*\n.*#/type"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a/not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"type": "string", "pattern": "("}, "regular expression"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "no value is valid"),
        ({"type": "string", "minLength": 4, "maxLength": 2}, "minLength"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "#/nowhere"}, "leads nowhere"),
        ({"$ref": "http://example.com"}, "within the schema"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "given twice"),
        ({"type": "integer", "multipleOf": 0.5}, "multipleOf"),
        ([], "a schema is an object"),
        ({"type": 5}, "a type is a name"),
        ({"allOf": 5}, "allOf is a list"),
        ({"type": "array", "prefixItems": 5}, "prefixItems is a list"),
        ({"type": "integer", "multipleOf": "a"}, "a bound is a number"),
        ({"type": "number", "minimum": float("inf")}, "a bound is a number"),
        ({"$ref": "#anchor"}, "within the schema"),
        ({"type": "object", "patternProperties": {"^x": {"type": "integer"}}}, "patternProperties"),
        ({"type": "object", "properties": {"xa": {}}, "patternProperties": {"^x": {}}}, "patternProperties"),
        ({"type": "string", "const": 1}, "no value is valid"),
        (functools.reduce(lambda inner, _: {"type": "array", "items": inner}, range(3000), {}), "nested too deep"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(schema, part):
    with pytest.raises(SchemaError) as error:
        compile_schema(schema)
    assert re.search(part, str(error.value)), str(error.value)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$ref": "#/$defs/A", "maxLength": 2, "$defs": {"A": {"type": "string"}}}, '"ab"', '"abc"'),
        ({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "null"}}}, "null", "1"),
        ({"allOf": [{"$ref": "#/$defs/A"}, {"required": ["a"]}], "$defs": {"A": {"properties": {"a": {"const": 1}}}}},
         '{"a": 1}', "{}"),
        ({"enum": [1, 2, 3], "minimum": 2}, "3", "1"),
        ({"enum": ["a", 1], "anyOf": [{"type": "integer"}, {"maxLength": 0}]}, "1", '"a"'),
        ({"enum": [True, 1], "const": 1}, "1", "true"),
        ({"type": "number", "minimum": 0, "maximum": 1e300}, "12.5", "-1"),
        ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "9223372036854775807", "9223372036854775808"),
    ],
)  # fmt: skip
def test_keywords_beside_others_count(schema, good, bad):
    automaton = compile_schema(schema)
    assert automaton.accepts_text(good) and not automaton.accepts_text(bad)
    jsonschema.Draft202012Validator(schema).validate(json.loads(good))
    assert not jsonschema.Draft202012Validator(schema).is_valid(json.loads(bad))


def test_what_grows_too_large_nests_less_or_is_refused():
    start = time.process_time()
    parts = {name: {"type": "object", "properties": {f"k{n}": {"$ref": f"#/$defs/{other}"} for n in range(4)}}
             for name, other in (("A", "B"), ("B", "A"))}  # fmt: skip
    automaton = compile_schema({"$ref": "#/$defs/A", "$defs": parts})
    assert automaton.accepts_text('{"k0": {"k3": {}}}')
    for schema in ({"type": "string", "minLength": 10**9}, {"type": "string", "pattern": "^((a{99}){99}){99}$"}):
        with pytest.raises(TooLargeError, match="more than"):
            compile_schema(schema)
    assert time.process_time() - start < 30


def test_alternatives_share_their_beginnings():
    values = [f"value {n}" for n in range(5000)]
    automaton = compile_schema({"enum": values})
    assert automaton.size < 20_000
    assert all(automaton.accepts_text(f'"{value}"') for value in values[::97])
    assert not automaton.accepts_text('"value 5000"') and not automaton.accepts_text('"value"')
