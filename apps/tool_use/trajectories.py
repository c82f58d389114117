"""Solved tasks as turns to learn: what stood before a turn, and what the assistant then said and called.

A `Turn` is a `ToolExample` whose prompt is a conversation in steps (see `prompts.conversation`), with `Finish` among
the tools. The readers open ToolBench's answer trees (Qin et al. 2023), traces of `ToolUsePipeline`, and
chat-completions conversations; of a tree only the way to its answer is learnt, and a tree without an answer gives
nothing. A call of a tool that does not exist stays in the conversation under a name that says so, and is not learnt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.data import ToolExample
from apps.tool_use.rows import told
from apps.tool_use.session import FINISH, SENTINEL
from apps.tool_use.spec import ToolSpec, from_chat
from apps.tool_use.trace import Node, Trace, node_from
from core.config.files import read_json
from core.data.readers import Readers
from core.data.rows import BadRows, jsonl
from core.errors import DataError

READERS: Readers[Turn] = Readers("runs")
STAND_INS: dict[str, str] = {}
ANSWERED = "Gave the final answer."


@dataclass(frozen=True)
class Turn(ToolExample):
    """One turn of the assistant.

    Args:
        messages: the conversation before it, chat-completions turns from the question on. said: its thought.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    said: str = ""

    @property
    def text(self) -> str:
        """What a tokenizer may be trained on."""
        from apps.tool_use.prompts import conversation, said

        prompt = conversation(self.tools, self.messages)[0].text
        return f"{prompt} {said(reply(self), 'json')}"


def reply(turn: Turn) -> dict[str, Any]:
    """The turn as a chat-completions message."""
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.calls or ()]
    return {"role": "assistant", "content": turn.said, **({"tool_calls": calls} if calls else {})}


def turns(
    tools: Sequence[ToolSpec], messages: Sequence[Mapping[str, Any]], name: str, *, finish: bool = True
) -> Iterator[Turn]:
    """A turn for every message of the assistant in a conversation.

    Args:
        finish: offer `Finish`, which an answer in words becomes.

    Raises:
        DataError: a call of a tool that is not there, or no question before the first turn.
    """
    offered = (*(tool for tool in tools if tool.name != FINISH.name), *((FINISH,) if finish else ()))
    names = {tool.name for tool in offered}
    for at, message in enumerate(messages):
        if not isinstance(message.get("content"), (str, type(None))):
            raise DataError("what is said is a text", field=f"messages[{at}]/content", got=message["content"])
        if message["role"] != "assistant" or SENTINEL in [_named(call) for call in message.get("tool_calls") or []]:
            continue
        before = tuple(messages[:at])
        asked = next((m["content"] for m in before if m["role"] == "user"), None)
        if asked is None:
            raise DataError("the assistant speaks before anybody asked", field=f"messages[{at}]")
        calls, thought = tuple(_calls(message, names, f"messages[{at}]")), str(message.get("content") or "")
        if not calls and finish:
            calls, thought = (Call(FINISH.name, {"return_type": "give_answer", "final_answer": thought}),), ""
        yield Turn(asked, offered, calls, id=f"{name}.{at}", messages=before, said=thought)


def _named(call: Mapping[str, Any]) -> Any:
    return call.get("function", call).get("name")


def _calls(message: Mapping[str, Any], names: set[str], at: str) -> Iterator[Call]:
    for number, given in enumerate(message.get("tool_calls") or []):
        inner = given.get("function", given)
        arguments = inner.get("arguments", {})
        place = f"{at}/tool_calls[{number}]"
        if inner.get("name") not in names:
            raise DataError("the tool is not among the tools", field=f"{place}/name", got=inner.get("name"),
                            expected=", ".join(sorted(names)))  # fmt: skip
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except json.JSONDecodeError as error:
            raise DataError(f"the arguments are not JSON: {error.msg}", field=f"{place}/arguments") from error
        if not isinstance(arguments, dict):
            raise DataError("the arguments are no object", field=f"{place}/arguments", got=arguments)
        yield Call(inner["name"], arguments)


@READERS.register("toolbench")
def toolbench(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[Turn]:
    """ToolBench's answer files, alone or in folders: the turns on the way to the answer of each solved tree."""
    for file in _files(path):
        data = read_json(file)
        found: list[Turn] = []
        with told(on_bad, "an answer file", file=file):
            record = data["answer_generation"]
            leaf = answer_of(node_from(data["tree"]["tree"]))
            tools = [from_chat(tool) for tool in record["function"] if tool.get("name") != FINISH.name]
            if leaf is not None:
                found = list(turns(tools, spoken(record["query"], leaf, tools), file.stem))
        yield from found


def answer_of(root: Node) -> Node | None:
    """The first node, depth first, that gave an answer; None when the tree holds none."""
    for node in root.walk():
        named = node.kind == "Action Input" and node.parent is not None and node.parent.text == FINISH.name
        if named and '"give_answer"' in node.text:
            return node
    return None


def spoken(query: str, leaf: Node, tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The way to `leaf` as a conversation; a tool that is not among `tools` gets a name that says so.

    Raises:
        DataError: arguments on it that are not JSON.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": query.strip()}]
    known, thought, name = {FINISH.name, *(tool.name for tool in tools)}, "", ""
    for number, node in enumerate(leaf.path()):
        if node.kind == "Thought":
            thought = node.text
        elif node.kind == "Action":
            name = node.text if node.text in known else SENTINEL
        elif node.kind == "Action Input":
            try:
                arguments = json.loads(node.text or "{}", strict=False)
            except json.JSONDecodeError as error:
                raise DataError(f"the arguments of step {number} are not JSON: {error.msg}", got=node.text) from error
            call = {"id": f"call_{number}", "name": name, "arguments": arguments}
            messages.append({"role": "assistant", "content": thought, "tool_calls": [call]})
            seen = node.observation or ANSWERED
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": seen})
            thought = ""
    return messages


@READERS.register("runs")
def runs(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[Turn]:
    """Saved traces of `ToolUsePipeline` that end with an answer."""
    for file in _files(path):
        found: list[Turn] = []
        with told(on_bad, "a trace", file=file):
            trace = Trace.load(file)
            if trace.finish == "answer":
                found = list(turns([from_chat(tool) for tool in trace.tools], trace.messages, file.stem))
        yield from found


@READERS.register("traces")
def traces(path: str | Path, *, split: str | None = None, on_bad: BadRows) -> Iterator[Turn]:
    """Chat-completions conversations, {"messages": […], "tools": […]} a line; a last turn in words becomes `Finish`."""
    file = Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else Path(path)
    for number, row in jsonl(file, on_bad):
        found: list[Turn] = []
        with told(on_bad, "a conversation", file=file, line=number):
            messages = [m for m in row.get("messages") or [] if m.get("role") != "system"]
            tools = [from_chat(tool, f"tools[{n}]") for n, tool in enumerate(row.get("tools") or [])]
            found = list(turns(tools, messages, str(row.get("id", number))))
        yield from found


@READERS.register("embedded")
def embedded(path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[Turn]:
    """Two turns for each of the project's small questions: the call, and the answer once it has returned."""
    from apps.tool_use.tasks import tasks

    for number, (question, tools, call) in enumerate(tasks(split or "train")):
        made = {"id": "call_1", "name": call.name, "arguments": dict(call.arguments)}
        yield from turns(tools, [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"I call {call.name}.", "tool_calls": [made]},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"result": "done"}'},
            {"role": "assistant", "content": "It is done."},
        ], str(number))  # fmt: skip


def _files(path: str | Path) -> list[Path]:
    """A file, or every .json file below a folder. Raises `DataError` when there is none."""
    place = Path(path)
    found = [place] if place.is_file() else sorted(place.rglob("*.json"))
    if not found:
        raise DataError("no JSON files here", file=place)
    return found
