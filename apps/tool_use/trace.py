"""What happened while a question was worked on: the tree of steps, its events, and a trace that can be run again.

Nodes are those of ToolBench's answer trees (Qin et al. 2023), and a tree is written in their form: a Thought, an Action
(the tool's name) and an Action Input (the arguments, with what came back). A node's depth counts nodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps.tool_use.calls import Call
from apps.tool_use.executors.observation import ANSWER, GIVE_UP, Observation
from apps.tool_use.executors.replay import call_key
from apps.tool_use.spec import from_chat
from core.config.files import read_json, write_json
from core.errors import DataError
from core.inference.request import Event, Output, Request, SamplingParams

Kind = Literal["Thought", "Action", "Action Input"]
VERSION = 1


@dataclass
class Node:
    """A step.

    Args:
        text: the thought, the tool's name, or the arguments as JSON. messages: the conversation up to here.
        observation, status: of an Action Input. terminal: it gave the answer. pruned: the search turned back here.
        finished: it is on the way to an answer. order: number of the visit; 0 where the search has not gone on from.
    """

    kind: Kind
    text: str = ""
    parent: Node | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    observation: str = ""
    status: int | None = None
    terminal: bool = False
    pruned: bool = False
    finished: bool = False
    order: int = 0
    id: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def gave_up(self) -> bool:
        return self.status == GIVE_UP

    def path(self) -> list[Node]:
        """The nodes from the first step down to this one; the root, which is no step, left out."""
        return [] if self.parent is None else [*self.parent.path(), self]

    def add(self, kind: Kind, text: str, **fields: Any) -> Node:
        child = Node(kind, text, self, **fields)
        self.children.append(child)
        return child

    def walk(self) -> Iterator[Node]:
        """This node and all below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, Any]:
        """As in ToolBench's answer files."""
        made: dict[str, Any] = {
            "is_terminal": self.terminal, "pruned": self.pruned, "finished": self.finished, "depth": self.depth,
            "node_type": self.kind, "description": self.text, "expand_num": self.order,
        }  # fmt: skip
        if self.status is not None:
            made |= {"observation": self.observation, "observation_code": self.status}
        return {**made, "children": [child.to_dict() for child in self.children]}


def node_from(data: Mapping[str, Any], parent: Node | None = None) -> Node:
    """A node with all below it from ToolBench's form. Raises `DataError` for a node without a type."""
    if data.get("node_type") not in ("Thought", "Action", "Action Input"):
        raise DataError("a node has a type", field="node_type", got=data.get("node_type"), expected="Thought, Action …")
    node = Node(
        data["node_type"], str(data.get("description", "")), parent, observation=str(data.get("observation", "")),
        status=data.get("observation_code"), terminal=bool(data.get("is_terminal")), pruned=bool(data.get("pruned")),
        finished=bool(data.get("finished")), order=data.get("expand_num", 0),
    )  # fmt: skip
    node.children = [node_from(child, node) for child in data.get("children", [])]
    return node


@dataclass(frozen=True)
class ToolEvent(Event):
    """Something that happened: kind is thought, call, observation, answer or done.

    Args:
        call: of a call or an observation. observation: what came back. root: the tree as it is now.
    """

    call: Call | None = None
    observation: Observation | None = None
    root: Node | None = None


@dataclass
class Trace:
    """All that is needed to show a run, to learn from it and to run it again.

    Args:
        strategy, settings: how. messages: the winning chain as a chat-completions conversation.
        exchanges: [key of the prompt, text] of every model call in order.
        observations: {"name", "arguments", "text", "status"} of every call in order.
        finish: answer, gave_up, depth, budget or context.
    """

    query: str
    tools: list[dict[str, Any]]
    strategy: str
    settings: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)
    tree: dict[str, Any] = field(default_factory=dict)
    exchanges: list[list[str]] = field(default_factory=list)
    observations: list[dict[str, Any]] = field(default_factory=list)
    answer: str = ""
    finish: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **self.__dict__}

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace. Raises `GraftError` for a file that is none."""
        return cls.from_dict(read_json(path))

    @classmethod
    def from_dict(cls, data: Any) -> Trace:
        known = set(cls.__dataclass_fields__)
        if not isinstance(data, Mapping) or data.get("version") != VERSION or set(data) - known - {"version"}:
            raise DataError("not a trace of this version", got=sorted(data)[:5] if isinstance(data, Mapping) else data)
        missing = [name for name in ("query", "tools", "strategy", "settings") if name not in data]
        if missing:
            raise DataError("the trace lacks a field", field=missing[0])
        return cls(**{name: value for name, value in data.items() if name != "version"})

    def replay(self) -> Iterator[Event]:
        """Run it again on what was said and observed: the same events. Raises `DataError` where it departs."""
        from apps.tool_use.pipeline import ToolUsePipeline

        tools = [from_chat(tool) for tool in self.tools]
        executor = Retold(self.observations, tools)
        config = ToolUsePipeline._config(self.settings)
        pipeline = ToolUsePipeline(Said(self.exchanges), None, config, tools=tools, executor=executor)
        return pipeline.stream(self.query)


def prompt_key(prompt: str) -> str:
    """What tells prompts apart."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


class Said:
    """An engine that says what was said, in order, and checks that it is asked the same."""

    def __init__(self, exchanges: Sequence[Sequence[str]]) -> None:
        self.exchanges, self.count = list(exchanges), 0

    def capabilities(self) -> set[str]:
        return {"generate"}

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]:
        made = []
        for request in requests:
            if self.count >= len(self.exchanges) or self.exchanges[self.count][0] != prompt_key(request.text):
                raise DataError(
                    f"the run departs from its trace at model call {self.count + 1}", got=request.text[-80:],
                    hint="templates or tools have changed since it was recorded",
                )  # fmt: skip
            made.append(Output([], self.exchanges[self.count][1]))
            self.count += 1
        return made

    def close(self) -> None:
        """Nothing to give back."""


class Retold:
    """An executor that gives what was observed, in order, and checks that the calls are the same."""

    def __init__(self, observations: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> None:
        self.observations, self.tools, self.count = list(observations), tuple(tools), 0

    def run(self, call: Call) -> Observation:
        row = self.observations[self.count] if self.count < len(self.observations) else None
        if row is None or call_key(Call(row["name"], row["arguments"])) != call_key(call):
            raise DataError(f"the run departs from its trace at tool call {self.count + 1}", got=call_key(call))
        self.count += 1
        return Observation(row["text"], row["status"], row.get("seconds", 0.0), row.get("cut", 0))

    def run_all(self, calls: Sequence[Call]) -> list[Observation]:
        return [self.run(call) for call in calls]

    def close(self) -> None:
        """Nothing to end."""


def answered(node: Node) -> str:
    """The final answer that a terminal node gave."""
    return str(json.loads(node.text).get("final_answer", "")) if node.status in (ANSWER, GIVE_UP) and node.text else ""
