"""Rows with rubbish at every place: a reader tells which row and goes on where it was asked to, and never breaks."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

import pytest

from apps.tool_use import catalogue, data, trajectories
from apps.tool_use.calls import Call
from apps.tool_use.data import ToolExample
from apps.tool_use.evaluator import ToolUseEvaluator, judge
from apps.tool_use.schema import problem
from apps.tool_use.spec import ToolSpec
from core.data.rows import BadRows
from core.errors import DataError

JUNK: tuple[Any, ...] = (None, 5, "x", [], {}, [None], [5], {"a": 5}, True)
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}
DOCUMENT = json.dumps({"openapi": "3.0.0", "paths": {"/a": {"get": {"operationId": "f"}}}})
CALLED = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
TRACE = {"messages": [{"role": "user", "content": "q"}, CALLED, {"role": "tool", "tool_call_id": "1", "content": "x"}],
         "tools": [TOOL]}  # fmt: skip
ROWS: dict[tuple[Any, str], Any] = {
    (data, "traces"): TRACE,
    (trajectories, "traces"): TRACE,
    (data, "jsonl"): {"query": "q", "tools": [TOOL], "calls": [{"name": "f", "arguments": {"x": 1}}],
                      "expected": [{"f": {"x": [1]}}], "context": [["user", "a"]], "category": "parallel"},
    (data, "sharegpt"): [{"conversations": [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "x"}], "tools": json.dumps([TOOL])}],
    (data, "toolalpaca"): [{"Name": "n", "Documentation": DOCUMENT, "Instructions": ["q"],
                            "Golden_Answers": [[{"Action": "f", "Action_Input": "{}"}]]}],
    (catalogue, "jsonl"): {"query": "q", "tools": ["f"], "rewrites": ["a"]},
    (catalogue, "toolbench"): [{"query": "q", "query_id": 1, "relevant APIs": [["t", "a"]], "api_list": [
        {"category_name": "c", "tool_name": "t", "api_name": "a", "api_description": "d", "optional_parameters": [],
         "required_parameters": [{"name": "x", "type": "STRING", "description": "d"}]}]}],
    (catalogue, "mtrb"): [{"query": "q", "relevant Tools": ["f"]}],
}  # fmt: skip


def spoilt(value, whole, put):
    """The whole with every place in turn replaced by rubbish, or left out."""
    for junk in JUNK:
        yield put(junk)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield put({k: v for k, v in value.items() if k != key})
            yield from spoilt(inner, whole, lambda new, key=key: put({**value, key: new}))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from spoilt(inner, whole, lambda new, at=at: put([*value[:at], new, *value[at + 1 :]]))


@pytest.mark.parametrize("module, reader", ROWS, ids=lambda part: getattr(part, "__name__", part).rpartition(".")[2])
def test_rubbish_at_every_place_of_a_row(module, reader, tmp_path):
    row, read = ROWS[module, reader], module.READERS.get(reader)
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    file, told = tmp_path / "rows.jsonl", 0
    file.write_text(json.dumps(row))
    assert list(read(str(file), on_bad=BadRows("raise")))
    for bad in spoilt(row, row, lambda new: new):
        if isinstance(row, list) != isinstance(bad, list):
            continue
        file.write_text(json.dumps(bad))
        try:
            for example in read(str(file), on_bad=BadRows("raise")):
                assert example.text
                if isinstance(example, ToolExample) and reader == "jsonl":
                    ToolUseEvaluator().score(['[{"name": "f", "arguments": {"x": {"a": 1}}}]'], [example])
        except DataError as error:
            told += 1
            assert error.file is not None or "the catalogue has no tools" in error.what
    assert told > 10


@pytest.mark.parametrize("kind", [["integer", "null"], "null", None, "object", "array"])
def test_kinds_that_the_leaderboard_has_not_are_judged_too(kind):
    tool = ToolSpec("f", "", {"type": "object", "properties": {"x": {"type": kind} if kind else {}}})
    for value in (3, None, {"a": {"b": 1}}, [{"a": 1}, {"a": 2}]):
        example = ToolExample("q", (tool,), (Call("f", {"x": value}),), category="simple_python")
        verdict = judge(example, [Call("f", {"x": 4})])
        assert not verdict.valid
        fits = (kind == "object") == isinstance(value, dict) and (kind == "array") == isinstance(value, list)
        if kind is None or fits:
            assert judge(example, example.calls).valid or value is None, (kind, value)


def test_literal_calls_with_objects_are_right_as_they_are():
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    properties = {"one": inner, "many": {"type": "array", "items": inner}, "open": {}, "rows": {"type": "array"}}
    tool = ToolSpec("f", "", {"type": "object", "properties": properties})
    arguments = {"one": {"a": 1}, "many": [{"a": 1}, {"a": 2}], "open": {"a": 1}, "rows": [{"a": 1}]}
    example = ToolExample("q", (tool,), (Call("f", arguments),), category="simple_python")
    assert judge(example, [Call("f", arguments)]).valid
    for name in arguments:
        wrong = {**arguments, name: json.loads(json.dumps(arguments[name]).replace("1", "7"))}
        assert not judge(example, [Call("f", wrong)]).valid, name


def test_a_schema_never_reaches_out_and_says_where_it_fails():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        away = f"http://127.0.0.1:{served.server_port}/schema.json"
        for schema in ({"$ref": away}, {"$ref": "#/nowhere"}, {"type": "colour"}, {"pattern": "("}):
            with pytest.raises(DataError, match="f#"):
                problem(ToolSpec("f", "", {"properties": {"x": schema}}), {"x": "a"})
        served.shutdown()
    assert asked == []
