"""Calls written and read in every form, kept to while they are written, and judged."""

from __future__ import annotations

import json
import random
import time

import jsonschema
import numpy as np
import pytest

from apps.tool_use.ast_check import check, folded
from apps.tool_use.calls import FORMATS, Call, constraint, form_of, parse, render
from apps.tool_use.data import READERS, ToolExample, load_data
from apps.tool_use.prompts import ENDS, TEMPLATES, segments
from apps.tool_use.schema import problem
from apps.tool_use.spec import from_bfcl, from_chat
from apps.tool_use.tasks import tasks
from benchmarks.schemas import random_schema
from core.config.schema import ModelConfig
from core.data.encode import IGNORE, encode
from core.data.rows import BadRows
from core.errors import ConfigError, DataError
from core.inference.engines.hf import HfEngine
from core.inference.request import Request, SamplingParams
from core.models.load import load_model
from core.models.tokenizer import train_bpe

CALLS = [Call("f", {"a": 1, "b": "x, é", "c": [True, None]}), Call("g.h", {})]
F = from_chat({"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}})
G = from_chat({"name": "g", "parameters": {"properties": {"s": {"type": "string"}}}})


@pytest.mark.parametrize("form", ["json", "hermes", "python"])
def test_calls_are_read_as_they_were_written(form):
    text = render(CALLS, form)
    for shown in (text, f"```json\n{text}\n```", f" {text} "):
        assert parse(shown, form).calls == CALLS
        assert form_of(shown.strip()) == form
    assert parse("I cannot help with that.", form).calls == []


def test_what_was_passed_over_is_listed():
    found = parse('Sure: [{"name": "f", "arguments": "{\\"a\\": 1}"}, {"nam": "g"}] Done.')
    assert found.calls == [Call("f", {"a": 1})] and found.rest == "Sure: Done."
    assert len(found.notes) == 2 and "no call" in found.notes[1]
    assert parse('[{"name": "f", "argum').notes[0].startswith("not JSON")
    assert parse("[f(1)]", "python").notes and not parse("[f(1)]", "python").calls
    assert parse("[f(a=b)]", "python").notes == ["'a' is no literal"]
    assert parse("I ask [twice]\n[f(a=1)]", "python").calls == [Call("f", {"a": 1})]
    found = parse("I ask first.\n[f(a=1), g()] Done.", "python")
    assert found.calls == [Call("f", {"a": 1}), Call("g")] and found.rest == "I ask first. Done." and not found.notes


@pytest.mark.parametrize("form", FORMATS)
def test_calls_kept_to_while_written_are_valid_whatever_the_weights(form):
    tokenizer = train_bpe(["".join(map(chr, range(32, 127))), "<tool_call>\n"] * 20, 400)
    engine = HfEngine(load_model(ModelConfig(preset="tiny"), tokenizer, seed=1), tokenizer)
    kept = constraint([F, G], tokenizer, form, most=2)
    for seed in range(6):
        (output,) = engine.generate(
            [Request([5, 6], constraint=kept)], SamplingParams(max_new_tokens=150, temperature=2.0, seed=seed)
        )
        found = parse(output.text, form)
        assert 1 <= len(found.calls) <= 2 and not found.notes and not found.rest, output.text
        for call in found.calls:
            assert problem({"f": F, "g": G}[call.name], dict(call.arguments)) is None, output.text


def test_a_schema_that_cannot_be_kept_names_its_tool():
    bad = from_chat({"name": "bad", "parameters": {"properties": {"x": {"not": {}}}}})
    tokenizer = train_bpe(["".join(map(chr, range(32, 127)))] * 20, 400)
    with pytest.raises(ConfigError, match="'bad'"):
        constraint([F, bad], tokenizer)
    with pytest.raises(ConfigError, match="Python"):
        constraint([from_chat({"name": "get-weather", "parameters": {}})], tokenizer, "python")
    constraint([from_chat({"name": "get-weather", "parameters": {}})], tokenizer, "hermes")


@pytest.mark.parametrize("form", FORMATS)
def test_random_schemas_and_random_logits_give_valid_calls(form):
    texts = ["".join(map(chr, range(32, 127))), "it's <tool_call>\n", "größer 日本語", "True None null ', '"] * 20
    tokenizer, rng, noise = train_bpe(texts, 500), random.Random(4), np.random.default_rng(4)
    for number in range(40):
        tools = [from_chat({"name": name, "parameters": random_schema(rng)}) for name in ("f", "g.h")]
        kept = constraint(tools, tokenizer, form, most=3, thought=number % 2 == 0)
        room = max(120, kept.shortest)
        state, ids = kept.start, []
        while len(ids) < room:
            mask = kept.allowed(state, room - len(ids))
            token = int(np.where(mask, noise.gumbel(size=len(mask)), -np.inf).argmax())
            if token in kept.vocabulary.end:
                break
            ids.append(token)
            state = kept.advance(state, token)
        text = b"".join(kept.vocabulary.bytes[i] for i in ids).decode("utf-8")
        found = parse(text, form)
        assert 1 <= len(found.calls) <= 3 and not found.notes and (number % 2 == 0 or not found.rest), text
        for call in found.calls:
            schema = next(tool for tool in tools if tool.name == call.name).parameters
            jsonschema.Draft202012Validator(schema).validate(dict(call.arguments))


PYTHON = from_chat({"name": "f", "parameters": {
    "properties": {
        "s": {"enum": ["it's", 'a"b', "both'\""]}, "from": {"type": ["boolean", "null"]},
        "a-b": {"const": {"k": [1.5, None]}}, "p": {"pattern": "^'\\d\"?$"}, "n": {"minimum": 2, "type": "integer"},
    },
    "required": ["s"],
}})  # fmt: skip


@pytest.mark.parametrize(
    "text, accepted",
    [
        ("""[f(s="it's")]""", True),
        (r"[f(s='it\'s')]", True),
        ("[f(s='it's')]", False),
        (r"""[f(s='both\'"')]""", True),
        ("""[f(s='a"b', **{'from': None}, **{"a-b": {'k': [1.5, None]}}, p='\\'3"', n=2)]""", True),
        ("""[f(s='a"b', p="'3")]""", True),
        ("""[f(s='a"b', p="'3"")]""", False),
        ("""[f(s='a"b', **{'from': null})]""", False),
        ("""[f(s='a"b', from=True)]""", False),
        ("""[f(n=2, s='a"b')]""", False),
        ("""[f(s='a"b', n=1)]""", False),
        ("[f()]", False),
        ("[]", False),
    ],
)
def test_python_calls_by_hand(text, accepted):
    tokenizer = train_bpe(["".join(map(chr, range(32, 127)))] * 20, 400)
    assert constraint([PYTHON], tokenizer, "python").automaton.accepts_text(text) == accepted
    if accepted:
        found = parse(text, "python")
        assert not found.notes and problem(PYTHON, dict(found.calls[0].arguments)) is None
        assert constraint([PYTHON], tokenizer, "python").automaton.accepts_text(render(found.calls, "python"))
        assert parse(render(found.calls, "python"), "python").calls == found.calls


TYPED = from_bfcl({"name": "t", "parameters": {"type": "dict", "required": ["n"], "properties": {
    "n": {"type": "float"}, "s": {"type": "string"}, "l": {"type": "array", "items": {"type": "integer"}},
    "d": {"type": "dict"}, "b": {"type": "boolean"},
}}})  # fmt: skip
EXPECTED = [
    {"t": {"n": [2.0], "s": ["", "New York, NY"], "l": ["", [1, 2]], "d": ["", {"k": ["v", ""]}], "b": ["", True]}}
]


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"n": 2}, None),
        ({"n": 2.0, "s": "new york ny"}, None),
        ({"n": 2.0, "l": [1, 2], "d": {}, "b": True}, None),
        ({}, "simple_function_checker:missing_required"),
        ({"n": 2, "x": 1}, "simple_function_checker:unexpected_param"),
        ({"n": "2"}, "type_error:simple"),
        ({"n": 3}, "value_error:others"),
        ({"n": 2, "s": "Boston"}, "value_error:string"),
        ({"n": 2, "l": [2, 1]}, "value_error:list/tuple"),
        ({"n": 2, "b": 1}, "type_error:simple"),
        ({"n": 2, "d": {"z": 1}}, "value_error:dict_key"),
        ({"n": 2, "d": {"k": "w"}}, "value_error:dict_value"),
    ],
)
def test_verdicts_by_hand(arguments, error):
    verdict = check([TYPED], [Call("t", arguments)], EXPECTED, "simple_python")
    assert verdict.error == error and verdict.valid == (error is None)


def test_calls_at_once_match_in_any_order():
    expected = [{"t": {"n": [1.0]}}, {"t": {"n": [2.0]}}]
    calls = [Call("t", {"n": 2}), Call("t", {"n": 1})]
    assert check([TYPED], calls, expected, "parallel").valid
    assert check([TYPED], calls[:1], expected, "parallel").error.endswith("wrong_count")
    assert check([TYPED], [calls[0]] * 2, expected, "parallel").error.endswith("cannot_find_match")
    assert folded("A-b c.'") == 'abc"'


def test_traces_are_checked(tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ask, act = {"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": [call]}
    done = {"role": "tool", "tool_call_id": "1", "content": "ok"}
    good = {"messages": [ask, act, done, {"role": "assistant", "content": "done"}], "tools": tools}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(good) + "\n")
    (example,) = load_data(file)
    assert example.query == "go" and example.calls == (Call("f"),)
    wrong = {**call, "function": {"name": "g", "arguments": "{}"}}
    torn = {**call, "function": {"name": "f", "arguments": "{"}}
    for messages, part in (
        ([ask, act, {**done, "tool_call_id": "2"}], "messages[2]/tool_call_id"),
        ([ask, {**act, "tool_calls": [wrong]}], "messages[1]/tool_calls[0]/name"),
        ([ask, {**act, "tool_calls": [torn]}], "not JSON"),
        ([act], "before anybody asked"),
        ([], "no messages"),
    ):
        file.write_text(json.dumps({"messages": messages, "tools": tools}) + "\n")
        with pytest.raises(DataError) as error:
            load_data(file)
        assert part in str(error.value) and error.value.line == 1
        bad = BadRows("skip")
        assert list(READERS.get("traces")(str(file), on_bad=bad)) == [] and bad.count == 1


def test_shipped_tasks_keep_new_tools_for_the_test():
    train, test = tasks("train"), tasks("test")
    seen = {tool.name for _, tools, _ in train for tool in tools}
    assert not seen & {tool.name for _, tools, _ in test for tool in tools} and train == tasks("train")
    for _, tools, call in random.Random(0).sample(train, 100):
        tool = next(t for t in tools if t.name == call.name)
        assert problem(tool, dict(call.arguments)) is None and len(tools) == 2


@pytest.mark.parametrize("form", ["json", "hermes", "python"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_learnt_is_the_calls_and_their_end(template, form):
    context = (("user", "Say a."), ("assistant", render([Call("g", {"s": "a"})], form)), ("tool", "a was said"))
    calls = [Call("g", {"s": "b"}), Call("g", {"s": "c"})]
    row = segments(ToolExample("Now b and c.", (G,), tuple(calls), context=context), template, form, answer=True)
    tokenizer = train_bpe([segment.text for segment in row], 400)
    encoded = encode(row, tokenizer)
    learnt = tokenizer.decode([i for i, label in zip(encoded.input_ids, encoded.labels) if label != IGNORE])
    given = tokenizer.decode([i for i, label in zip(encoded.input_ids, encoded.labels) if label == IGNORE])
    lead, end = ENDS[template]
    assert learnt == f"{lead}{render(calls, form)}{end}{tokenizer.eos_token}"
    assert given == row[0].text and "a was said" in given


@pytest.mark.parametrize("form", ["json", "hermes", "python"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        '{"a":' * 50_000,
        "[" * 3000 + "]" * 3000,
        '[{"name": "f", "arguments": {"x": ' + "1" * 5000 + "}}]",
        '[{"name": "f", "arguments": {"x": "\\ud83d"}}]',
        "[f(x=" + "1" * 5000 + ")]",
        "[f(x=" + "-" * 5000 + "1)]",
        "f(" * 300 + ")" * 300,
        "a [ b { c " * 200_000,
        "<tool_call>" * 50_000,
    ],
    ids=lambda text: text[:12],
)
def test_rubbish_is_no_call_and_soon_read(form, text):
    start = time.perf_counter()
    text = text if form != "hermes" or "<" in text else f"<tool_call>{text}</tool_call>"
    parsed = parse(text, form)
    assert parsed.calls == []
    assert parsed.notes or parsed.rest
    assert time.perf_counter() - start < 20


def test_values_that_json_has_not_are_told_and_stay_text():
    (call,) = (parsed := parse("[f(a={1}, b=b'x', c=..., d={(1,): 2}, e={[]: 1}, g=(1, 2))]", "python")).calls
    assert len(parsed.notes) == 5
    assert json.dumps(dict(call.arguments))
    assert call.arguments["g"] == (1, 2) and call.arguments["a"] == "{1}"


@pytest.mark.parametrize("form", ["json", "python"])
def test_what_stands_beside_the_parameters_counts_too(form):
    tokenizer = train_bpe([" ".join(map(chr, range(32, 127)))] * 20, 400)
    both = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}

    def accepts(parameters, arguments):
        kept = constraint([from_chat({"name": "f", "parameters": parameters})], tokenizer, form)
        return kept.automaton.accepts_text(render([Call("f", arguments)], form))

    needs_a = {"$ref": "#/$defs/A", "$defs": {"A": {**both, "required": ["a"]}}}
    for parameters in (needs_a, {**both, "allOf": [{"required": ["a"]}]}, {**both, "anyOf": [{"required": ["a"]}]}):
        assert accepts(parameters, {"a": "x"}) and not accepts(parameters, {})
    for word, value in (("not", {}), ("if", {}), ("dependentRequired", {"a": ["b"]})):
        with pytest.raises(ConfigError, match=f"'{word}' is not supported"):
            accepts({**both, word: value}, {})
    with pytest.raises(ConfigError, match="more than"):
        accepts({**both, "properties": {"a": {"type": "string", "minLength": 10**9}}}, {})
