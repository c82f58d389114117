"""One question at work: a step asks the model, runs the calls it makes, and hangs what happened into the tree.

The strategies (`methods.react`, `methods.dfsdt`) decide from where the next step goes; they are generators of events,
so that a page can show them while they run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.tool_use.calls import Call, Parsed
from apps.tool_use.executors.observation import ANSWER, BAD_ARGUMENTS, GIVE_UP, UNKNOWN, Observation
from apps.tool_use.schema import problem
from apps.tool_use.spec import ToolSpec
from apps.tool_use.trace import Node, ToolEvent

FINISH = ToolSpec(
    "Finish",
    "Call this when you can answer, or when the way you have gone leads nowhere.",
    {
        "type": "object",
        "properties": {
            "return_type": {"enum": ["give_answer", "give_up_and_restart"]},
            "final_answer": {"type": "string", "description": "the answer, for give_answer"},
        },
        "required": ["return_type"],
    },
)
SENTINEL = "invalid_function_name"
"""Stands in the conversation for a tool that does not exist, so that the model is not led to call it again."""

Message = Mapping[str, Any]
Asked = Callable[[Sequence[Message]], tuple[str, str, Parsed]]
"""A conversation → (prompt, text, what the text says)."""


@dataclass
class Outcome:
    """How a strategy ended: why, and the node that it stands for."""

    finish: str
    node: Node | None


@dataclass
class Session:
    """The state of one question.

    Args:
        ask: asks the model. executor: runs calls. max_calls: model calls at most. max_depth: nodes of a chain at most.
        fits: whether a conversation leaves room in the model's context.
    """

    query: str
    ask: Asked
    executor: Any
    max_calls: int = 200
    max_depth: int = 12
    fits: Callable[[Sequence[Message]], bool] = lambda messages: True
    asked: int = 0
    made: int = 0
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    observations: list[dict[str, Any]] = field(default_factory=list)
    root: Node = field(init=False)

    def __post_init__(self) -> None:
        self.root = Node("Action Input", messages=({"role": "user", "content": self.query},))

    def ended(self, node: Node) -> str | None:
        """Why no step goes on from `node`: answer, gave_up, depth or context; None when one can."""
        if node.terminal:
            return "answer"
        if node.gave_up:
            return "gave_up"
        if node.depth >= self.max_depth:
            return "depth"
        return None if self.fits(node.messages) else "context"

    def say(self, messages: Sequence[Message]) -> Parsed:
        """One model call."""
        prompt, text, parsed = self.ask(messages)
        self.asked += 1
        self.exchanges.append((prompt, text))
        return parsed

    def step(self, node: Node, hint: str | None = None) -> Generator[ToolEvent, None, Node]:
        """One model call below `node`, and the calls it makes. The generator returns the last node.

        Args:
            hint: a message of the user that only this model call sees.
        """
        before = node.messages
        parsed = self.say((*before, {"role": "user", "content": hint}) if hint else before)
        calls, said = self._until_finish(parsed.calls), parsed.rest.strip()
        if said or not (calls or parsed.notes):
            node = node.add("Thought", said)
            yield ToolEvent("thought", said, root=self.root)
        unread = None
        if parsed.notes and not calls:
            calls, unread = [Call(SENTINEL)], Observation(f"The call cannot be read: {parsed.notes[0]}", BAD_ARGUMENTS)
        for call in calls:
            yield ToolEvent("call", json.dumps(call.to_dict(), ensure_ascii=False), call=call, root=self.root)
        found = [unread] if unread else self._run(calls)
        written, results = [], []
        for call, seen in zip(calls, found):
            node = node.add("Action", call.name)
            node = node.add("Action Input", json.dumps(dict(call.arguments), ensure_ascii=False))
            node.observation, node.status, node.terminal = seen.text, seen.status, seen.status == ANSWER
            self.made += 1
            name = SENTINEL if seen.status == UNKNOWN else call.name
            written.append({"id": f"call_{self.made}", "name": name, "arguments": dict(call.arguments)})
            results.append({"role": "tool", "tool_call_id": f"call_{self.made}", "content": seen.text})
        turn = {"role": "assistant", "content": said, **({"tool_calls": written} if written else {})}
        node.messages = (*before, turn, *results)
        for call, seen in zip(calls, found):
            yield ToolEvent("observation", seen.text, call=call, observation=seen, root=self.root)
        return node

    @staticmethod
    def _until_finish(calls: Sequence[Call]) -> list[Call]:
        """Calls behind a Finish are not made."""
        at = next((n for n, call in enumerate(calls) if call.name == FINISH.name), len(calls) - 1)
        return list(calls[: at + 1])

    def _run(self, calls: Sequence[Call]) -> list[Observation]:
        own = [call for call in calls if call.name != FINISH.name]
        found = self.executor.run_all(own)
        for call, seen in zip(own, found):
            self.observations.append({**call.to_dict(), **seen.to_dict()})
        return [*found, *(finish(call.arguments) for call in calls if call.name == FINISH.name)]


def finish(arguments: Mapping[str, Any]) -> Observation:
    """What comes back from `Finish`."""
    wrong = problem(FINISH, dict(arguments))
    if wrong is not None:
        return Observation(f"Bad arguments: {wrong}", BAD_ARGUMENTS)
    if arguments["return_type"] == "give_up_and_restart":
        return Observation("Chose to give up and restart.", GIVE_UP)
    if "final_answer" not in arguments:
        return Observation("Bad arguments: 'final_answer' is missing", BAD_ARGUMENTS)
    return Observation("Gave the final answer.", ANSWER)
