"""Readers of traces and of public sets: what they take, and where they say that a row is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apps.tool_use.calls import Call
from apps.tool_use.data import READERS, load_data
from core.data.rows import BadRows
from core.errors import DataError

ROOT = Path(os.environ.get("GRAFT_DATA", "/nowhere")) / "data/tool_use"
TOOL = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}},
}
ASK = {"role": "user", "content": "go"}


def act(arguments="{}", id="1", name="f"):
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def result(id="1"):
    return {"role": "tool", "tool_call_id": id, "content": "ok"}


def traces(tmp_path, *messages):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps({"messages": messages, "tools": [TOOL]}) + "\n")
    return load_data(file)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ((ASK, act('{"a": [1, "x"]}')), "messages[1]/tool_calls[0]/arguments/a/1"),
        ((ASK, act('{"a": 3}')), "messages[1]/tool_calls[0]/arguments/a"),
        ((ASK, act("[1]")), "the arguments are no object"),
        ((ASK, act(), {"role": "assistant", "content": "done"}), "messages[1]/tool_calls[0]/id"),
        ((ASK, act(), result(), result()), "messages[3]/tool_call_id"),
        ((ASK, act(), result(), ASK, act(id="2"), ASK), "messages[4]/tool_calls[0]/id"),
        ((ASK, act(name="g")), "not among the tools"),
    ],
)
def test_a_trace_that_is_wrong_names_the_place(tmp_path, messages, part):
    with pytest.raises(DataError) as error:
        traces(tmp_path, *messages)
    assert part in str(error.value) and error.value.line == 1


def test_a_trace_may_end_in_a_call(tmp_path):
    first, second = traces(tmp_path, ASK, act(), result(), {"role": "user", "content": "on"}, act('{"a": [1]}', "2"))
    assert first.calls == (Call("f"),) and second.calls == (Call("f", {"a": [1]}),) and second.query == "on"


def test_conversations_of_sharegpt(tmp_path):
    said = [("human", "go"), ("function_call", '{"name": "f", "arguments": {"a": [1]}}'), ("observation", "ok"),
            ("gpt", "done"), ("human", "again"),
            ("function_call", '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]')]  # fmt: skip
    row = {"conversations": [{"from": who, "value": what} for who, what in said], "tools": json.dumps([TOOL])}
    file = tmp_path / "s.json"
    file.write_text(json.dumps([row, {**row, "tools": "[]"}]))
    first, second = load_data(file, "sharegpt")
    assert first.calls == (Call("f", {"a": [1]}),) and len(second.calls) == 2
    assert second.context[0] == ("user", "go") and second.query == "again"
    row["conversations"][1]["value"] = '{"name": "g", "arguments": {}}'
    for bad, part in (([row], r"\[0\] messages\[1\]"), ([{}], "not a conversation"), ({}, "not a list")):
        file.write_text(json.dumps(bad))
        with pytest.raises(DataError, match=part):
            load_data(file, "sharegpt")


def document(*names):
    paths = {f"/{name}": {"get": {"operationId": name}} for name in names}
    return json.dumps({"openapi": "3.0.0", "paths": paths})


def test_apis_of_toolalpaca(tmp_path):
    def step(name, text):
        return {"Action": name, "Action_Input": text}

    first = [step("find", "{}")]
    chained = [step("find", '{"q": 1}'), step("get", '{"id": ${id from find}}')]
    golden = {"Name": "A", "Documentation": document("find", "get"), "Instructions": ["one", "two", "three"]}
    golden["Golden_Answers"] = [first, chained, [step("get", "{${x}}")]]
    taken = {"input": "four", "intermediate_steps": [[["find", "{}", "log"], "seen"]]}
    learnt = {"Name": "B", "Documentation": document("find"), "Instances": [taken, {"input": "five"}]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps([golden, learnt]))
    found = load_data(file, "toolalpaca")
    assert [(e.query, [c.name for c in e.calls]) for e in found] == [
        ("one", ["find"]),
        ("two", ["find"]),
        ("four", ["find"]),
    ]
    assert [tool.name for tool in found[0].tools] == ["find", "get"] and found[1].id == "A:1"
    file.write_text(json.dumps([{"Name": "C"}]))
    with pytest.raises(DataError, match=r"\[0\]"):
        load_data(file, "toolalpaca")


@pytest.mark.skipif(not ROOT.is_dir(), reason="GRAFT_DATA names no folder with data/tool_use")
def test_the_public_files_are_read_whole():
    alpaca = load_data(ROOT / "toolalpaca/eval_simulated.json", "toolalpaca")
    assert len(alpaca) == 93 and sum(len(e.calls) for e in alpaca) == 121, "7 begin with a call that is no JSON"
    bad = BadRows("skip")
    glaive = list(READERS.get("sharegpt")(str(ROOT / "glaive_demo/glaive_toolcall_en_demo.json"), on_bad=bad))
    assert len(glaive) == 210 and bad.count == 1
