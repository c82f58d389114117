"""Questions with tools and the calls that answer them: the leaderboard's files and chat-completions traces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.executed import BFCL_MODULES, Episode
from apps.tool_use.openapi import from_openapi
from apps.tool_use.rows import answers_of, expected_of, told
from apps.tool_use.schema import problem
from apps.tool_use.spec import ToolSpec, check_tools, from_bfcl, from_chat, python_type
from core.data.readers import Readers
from core.data.rows import BadRows, jsonl
from core.errors import DataError

READERS: Readers[Any] = Readers("traces")
load_data = READERS.load
CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")


@dataclass(frozen=True)
class ToolExample:
    """A question, the tools at hand, and what is right.

    Args:
        context: (role, text) turns before the question.
        calls: the right calls, to learn; None when they are unknown, empty when no tool should be called.
        expected: for each call {name: {argument: [values that count]}}; None takes the calls literally.
        category: of the leaderboard, which says how calls are compared.
    """

    query: str
    tools: tuple[ToolSpec, ...]
    calls: tuple[Call, ...] | None = None
    expected: tuple[Mapping[str, Any], ...] | None = None
    category: str = "parallel"
    context: tuple[tuple[str, str], ...] = ()
    id: str | None = None

    @property
    def text(self) -> str:
        """What a tokenizer may be trained on: tools, question and calls as a model sees them."""
        tools = "\n".join(json.dumps(tool.to_chat()["function"], separators=(",", ":")) for tool in self.tools)
        return f"{tools}\n{self.query}\n{json.dumps([call.to_dict() for call in self.calls or ()])}"


def wanted(example: ToolExample) -> tuple[Mapping[str, Any], ...]:
    """What each call may be; literal calls as lists of one value."""
    if example.expected is not None:
        return example.expected
    schemas = {tool.name: tool.properties for tool in example.tools}
    return tuple(
        {c.name: {k: [_literal(v, schemas.get(c.name, {}).get(k))] for k, v in c.arguments.items()}}
        for c in example.calls or ()
    )


def _literal(value: Any, schema: Any) -> Any:
    """A value as an allowed one: dictionaries that are documented as such have a list of values for each key."""
    if isinstance(value, dict) and python_type(schema) == "dict":
        return {k: [v] for k, v in value.items()}
    items = schema.get("items") if isinstance(schema, Mapping) else None
    return [_literal(item, items) for item in value] if isinstance(value, list) and items is not None else value


def first_allowed(expected: Mapping[str, Any]) -> Call:
    """The call that takes the first value that counts of every argument, leaving out what may be left out."""
    ((name, arguments),) = expected.items()
    chosen = {key: values[0] for key, values in arguments.items() if values and values[0] != ""}
    return Call(name, {key: _first(value) for key, value in chosen.items()})


def _first(value: Any) -> Any:
    """Inside an allowed dictionary every key has its own list of values."""
    if isinstance(value, dict):
        return {k: _first(v[0]) for k, v in value.items() if isinstance(v, list) and v and v[0] != ""}
    if isinstance(value, list):
        return [_first(item) if isinstance(item, dict) else item for item in value]
    return value


@READERS.register("bfcl")
def bfcl(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolExample]:
    """A category of the Berkeley Function Calling Leaderboard: `{split}.jsonl` and `possible_answer/{split}.jsonl`."""
    folder, name = Path(path), split or "simple_python"
    if name not in CATEGORIES:
        raise DataError("unknown category", file=folder, got=name, expected=", ".join(CATEGORIES))
    answers: dict[str, Any] = {}
    answer_file = folder / "possible_answer" / f"{name}.jsonl"
    if name != "irrelevance":
        answers = answers_of(answer_file, on_bad)
    file = folder / f"{name}.jsonl"
    for number, row in jsonl(file, on_bad):
        found = []
        with told(on_bad, "a row of the leaderboard", file=file, line=number):
            turns = row["question"][0]
            tools = tuple(from_bfcl(document) for document in row["function"])
            expected = tuple(answers.get(row["id"], ()))
            context = tuple((str(turn["role"]), str(turn["content"])) for turn in turns[:-1])
            calls = tuple(map(first_allowed, expected))
            found = [ToolExample(str(turns[-1]["content"]), tools, calls, expected, name, context, row["id"])]
            check_tools(tools)
            if unknown := {next(iter(call)) for call in expected} - {tool.name for tool in tools}:
                raise DataError("the right call is of no tool of the row", field="ground_truth", got=min(unknown))
        yield from found


@READERS.register("bfcl_multi_turn")
def bfcl_multi_turn(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[Episode]:
    """Multi-turn categories: `multi_turn_{split}.jsonl` (base, miss_func, miss_param) with answers and documents."""
    folder, name = Path(path), f"multi_turn_{split or 'base'}"
    if not (folder / f"{name}.jsonl").is_file():
        raise DataError("unknown multi-turn category", file=folder, got=split, expected="base, miss_func, miss_param")
    answers = {row["id"]: row["ground_truth"] for _, row in jsonl(folder / "possible_answer" / f"{name}.jsonl", on_bad)}
    known: dict[str, list[ToolSpec]] = {}
    for number, row in jsonl(folder / f"{name}.jsonl", on_bad):
        with told(on_bad, "a multi-turn row", file=folder / f"{name}.jsonl", line=number):
            for cls in row["involved_classes"]:
                if cls not in known:
                    documents = jsonl(folder / "multi_turn_func_doc" / f"{BFCL_MODULES[cls]}.jsonl", on_bad)
                    known[cls] = [from_bfcl(document) for _, document in documents]
            left_out = set(row.get("excluded_function", ()))
            tools = [tool for cls in row["involved_classes"] for tool in known[cls] if tool.name not in left_out]
            turns = tuple(tuple((said["role"], said["content"]) for said in turn) for turn in row["question"])
            expected = tuple(tuple(turn) for turn in answers[row["id"]])
            yield Episode(
                turns, expected, tuple(row["involved_classes"]), row["initial_config"], tuple(tools), row["id"]
            )


@READERS.register("traces")
def traces(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolExample]:
    """Chat-completions traces, {"messages": […], "tools": […]} a line: an example for each turn that calls tools.

    Checked: call ids pair up, the tools exist, arguments are valid for them. An error names message and JSON pointer.
    """
    file = Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else Path(path)
    for number, row in jsonl(file, on_bad):
        found = []
        with told(on_bad, "a trace", file=file, line=number):
            found = list(_trace(row))
        yield from found


def _trace(row: Mapping[str, Any]) -> Iterator[ToolExample]:
    messages, given = row.get("messages"), row.get("tools")
    if not isinstance(messages, list) or not messages:
        raise DataError("no messages", field="messages", got=messages, expected="a list of turns")
    if not isinstance(given, list) or not given:
        raise DataError("no tools", field="tools", got=given, expected="a list of tools")
    tools = tuple(from_chat(tool, f"tools[{n}]") for n, tool in enumerate(given))
    check_tools(tools)
    known, waiting = {tool.name: tool for tool in tools}, dict[Any, str]()
    context: list[tuple[str, str]] = []
    for n, message in enumerate(messages):
        at = f"messages[{n}]"
        if not isinstance(message, Mapping):
            raise DataError("a turn is an object", field=at, got=message)
        role, made = message.get("role"), message.get("tool_calls") or []
        if not isinstance(made, list) or not all(isinstance(call, Mapping) for call in made):
            raise DataError("tool_calls are a list of calls", field=f"{at}/tool_calls", got=made)
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                raise DataError(
                    "a result without its call", field=f"{at}/tool_call_id", got=message.get("tool_call_id")
                )
            del waiting[message["tool_call_id"]]
        elif waiting:
            raise DataError("a call without its result", field=next(iter(waiting.values())), got=next(iter(waiting)))
        calls = [_called(call, known, f"{at}/tool_calls[{i}]") for i, call in enumerate(made)]
        if calls:
            asked = max((i for i, (r, _) in enumerate(context) if r == "user"), default=None)
            if asked is None:
                raise DataError("a call before anybody asked", field=at)
            if asked == len(context) - 1:
                yield ToolExample(context[asked][1], tools, tuple(calls), context=tuple(context[:asked]))
            waiting |= {call.get("id"): f"{at}/tool_calls[{i}]/id" for i, call in enumerate(made)}
        context.append((str(role), str(message.get("content") or "")))


def _called(given: Mapping[str, Any], known: Mapping[str, ToolSpec], at: str) -> Call:
    inner = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(inner, Mapping):
        raise DataError("a call has a name and arguments", field=at, got=given)
    name, arguments = inner.get("name"), inner.get("arguments", {})
    if not isinstance(name, str) or name not in known:
        raise DataError(
            "the tool is not among the tools", field=f"{at}/name", got=name, expected=", ".join(sorted(known))
        )
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise DataError(
                f"the arguments are not JSON: {error.msg}", field=f"{at}/arguments", got=arguments
            ) from error
    if not isinstance(arguments, dict):
        raise DataError("the arguments are no object", field=f"{at}/arguments", got=arguments, expected="{…}")
    wrong = problem(known[name], arguments)
    if wrong is not None:
        place, _, what = wrong.partition(": ")
        raise DataError(f"the arguments are not valid: {what}", field=f"{at}/arguments{place.rstrip('/')}")
    return Call(name, arguments)


@READERS.register("jsonl")
def rows(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolExample]:
    """The simple form, {"query", "tools", "calls" or "expected", "category"?, "context"?, "id"?} a line."""
    file = Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else Path(path)
    for number, row in jsonl(file, on_bad):
        found = []
        with told(on_bad, "a row", file=file, line=number):
            if not isinstance(row.get("query"), str) or not row["query"].strip():
                raise DataError("a row has a question", field="query", got=row.get("query"))
            tools = tuple(from_chat(tool, f"tools[{n}]") for n, tool in enumerate(row.get("tools") or []))
            if not tools:
                raise DataError("a row has tools", field="tools", got=row.get("tools"))
            check_tools(tools)
            known = {tool.name: tool for tool in tools}
            calls = row.get("calls")
            right = None if calls is None else tuple(_called(c, known, f"calls[{n}]") for n, c in enumerate(calls))
            rest: dict[str, Any] = {name: str(row[name]) for name in ("category", "id") if row.get(name) is not None}
            rest["expected"] = expected_of(row["expected"]) if row.get("expected") is not None else None
            if unknown := {next(iter(call)) for call in rest["expected"] or ()} - set(known):
                raise DataError("the expected call is of no tool of the row", field="expected", got=min(unknown))
            rest["context"] = tuple((str(role), str(text)) for role, text in row.get("context") or ())
            found = [ToolExample(row["query"], tools, right, **rest)]
        yield from found


@READERS.register("sharegpt")
def sharegpt(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolExample]:
    """Conversations of human, gpt, function_call and observation with `tools` as JSON text (Glaive), as a JSON list."""
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    for number, row in enumerate(_listed(path)):
        found = []
        with told(on_bad, "a conversation", file=path, field=f"[{number}]"):
            messages: list[dict[str, Any]] = []
            for said in row["conversations"]:
                turn = {"role": roles.get(said["from"], said["from"]), "content": said["value"]}
                if said["from"] == "function_call":
                    made = json.loads(said["value"])
                    called = made if isinstance(made, list) else [made]
                    turn = {"role": "assistant", "tool_calls": [{"id": str(len(messages)), **call} for call in called]}
                elif said["from"] == "observation":
                    turn["tool_call_id"] = str(len(messages) - 1)
                messages.append(turn)
            tools = json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"]
            found = list(_trace({"messages": messages, "tools": tools})) if tools else []
        yield from found


@READERS.register("toolalpaca")
def toolalpaca(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[ToolExample]:
    """ToolAlpaca (Tang et al. 2023): APIs with instructions and golden answers, or with instances to learn from.

    An answer may fill a later call with what an earlier one returns; the calls up to there are kept.
    """
    for number, api in enumerate(_listed(path)):
        found = []
        with told(on_bad, "an API", file=path, field=f"[{number}]"):
            tools = tuple(from_openapi(json.loads(api["Documentation"])))
            if "Golden_Answers" in api:
                steps = [[(s["Action"], s["Action_Input"]) for s in answer] for answer in api["Golden_Answers"]]
                asked = list(zip(api["Instructions"], steps))
            else:
                asked = [
                    (i["input"], [(step[0][0], step[0][1]) for step in i["intermediate_steps"][:1]])
                    for i in api["Instances"]
                    if i.get("intermediate_steps")
                ]
            for index, (question, answer) in enumerate(asked):
                if calls := _until_filled(answer):
                    found.append(ToolExample(str(question), tools, calls, id=f"{api.get('Name', number)}:{index}"))
        yield from found


def _until_filled(answer: list[tuple[str, str]]) -> tuple[Call, ...]:
    """The calls before one whose arguments are no JSON yet."""
    calls = []
    for name, text in answer:
        try:
            calls.append(Call(name, json.loads(text)))
        except json.JSONDecodeError:
            break
    return tuple(calls)


def _listed(path: str) -> list[Any]:
    """A JSON file that holds a list."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read as JSON: {error}", file=path) from error
    if not isinstance(value, list):
        raise DataError("not a list", file=path, got=type(value).__name__)
    return value


@READERS.register("embedded")
def embedded(path: str | None = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[ToolExample]:
    """Questions for small tools that the project makes; the tools of split test are new to train and dev."""
    from apps.tool_use.tasks import tasks

    for number, (question, tools, call) in enumerate(tasks(split or "train")):
        yield ToolExample(question, tools, (call,), id=str(number))
