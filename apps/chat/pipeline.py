"""Ask and be answered: one question, a whole conversation, or a file of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apps.chat import prompts
from apps.chat.data import ROLES, ChatExample
from core.errors import AppInputError
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Event, Output, Request, Result


@dataclasses.dataclass(frozen=True)
class ChatConfig(PipelineConfig):
    """Args:
    template: chat template, as in training. system: text that opens conversations that have none.
    """

    template: str | None = "auto"
    system: str | None = None


class ChatPipeline(BasePipeline):
    """`chat("What is a crepe?")`, or a list of {"role", "content"} turns, or a `ChatExample`."""

    app = "chat"
    example_cls = ChatExample
    default_template = "auto"
    config_cls = ChatConfig

    def to_example(self, given: Any) -> ChatExample:
        """A `ChatExample` from a question, from turns, or from a dictionary of its fields."""
        if isinstance(given, ChatExample):
            return given
        if isinstance(given, str):
            return ChatExample((("user", given),))
        if isinstance(given, Mapping) and "messages" in given:
            return ChatExample(
                _turns(given["messages"]),
                given.get("answer"),
                given.get("rejected"),
                None if given.get("id") is None else str(given["id"]),
            )
        raise AppInputError(
            f"cannot use {type(given).__name__} as a conversation",
            hint='give a question, {"messages": [{"role": "user", "content": …}]}, or a ChatExample',
        )

    def prepare(self, example: ChatExample) -> Request:
        messages = example.messages
        if not messages or messages[-1][0] != "user" or not messages[-1][1].strip():
            raise AppInputError("the last turn is no question", hint="end the conversation with what the user says")
        if self.config.system and messages[0][0] != "system":
            messages = (("system", self.config.system), *messages)
        template = prompts.chosen(self.config.template or "auto", self.tokenizer)
        made = prompts.segments(messages, self.tokenizer, template)
        request = self.request(made, template=template)
        return dataclasses.replace(request, stop=prompts.STOPS.get(template, ()))

    def finish(self, request: Request, output: Output) -> Result:
        return Result(output.text.strip())

    def target_text(self, target: str) -> str:
        """A target as it stands behind the prompt: after a space where the template has one."""
        template = prompts.chosen(self.config.template or "auto", self.tokenizer)
        return f" {target}" if template == "plain" else target

    def stream(self, given: Any, **gen: Any) -> Iterator[Event]:
        """As the base's, without the spaces around the answer: one that may end it waits for what follows."""
        spaces, opened = "", False
        for event in super().stream(given, **gen):
            if event.kind != "text":
                yield event
                continue
            text = spaces + event.text if opened else event.text.lstrip()
            shown = text.rstrip()
            spaces = text[len(shown) :]
            if shown:
                opened = True
                yield dataclasses.replace(event, text=shown)


def _turns(messages: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise AppInputError("messages are a list of turns", hint='[{"role": "user", "content": …}, …]')
    turns = []
    for number, turn in enumerate(messages, 1):
        role, text = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else tuple(turn)
        if role not in ROLES or not isinstance(text, str):
            raise AppInputError(
                f"turn {number} is no turn", where=repr(turn)[:80], hint="role: system, user, assistant"
            )
        turns.append((ROLES[role], text))
    return tuple(turns)
