"""How tools and questions are put to a model, as segments: the tools as JSON, the turns, and the calls to learn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.tool_use.calls import Call, render
from apps.tool_use.data import ToolExample
from apps.tool_use.spec import ToolSpec
from core.data.segments import Segment
from core.errors import TemplateError, nearest


@dataclass(frozen=True)
class Turns:
    """How a conversation is written: a turn, what stands before the model's, and where that ends.

    Args:
        cue: before an answer; None takes the word that says what is asked for. lead, end: around the text of an answer.
        roles: names of roles that differ from ours.
    """

    turn: str
    cue: str | None
    lead: str = ""
    end: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)

    def written(self, role: str, text: str) -> str:
        name = self.roles.get(role, role)
        return self.turn.format(role=name, Role=name.capitalize(), text=text)


TEMPLATES = {
    "plain": Turns("{Role}: {text}\n", None, " "),
    "chatml": Turns("<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_start|>assistant\n", end="<|im_end|>"),
    "llama3": Turns(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        roles={"tool": "ipython"},
    ),
}
ENDS = {name: (turns.lead, turns.end) for name, turns in TEMPLATES.items()}
"""What stands before and behind the text of an answer."""
STOPS = ("\n\n", "<|im_end|>", "<|eot_id|>")
"""Where an answer that is not kept to a form ends."""
HOW = {
    "json": 'Answer with a JSON list of calls: [{"name": …, "arguments": {…}}].',
    "hermes": 'Answer with calls: <tool_call>{"name": …, "arguments": {…}}</tool_call>.',
    "python": "Answer with a list of function calls: [name(argument=value)].",
}


STEPS = (
    "Solve the task step by step. A step is one line with your thought, and below it your calls. "
    "After each step you see what the calls returned. End with a call of Finish.\n"
)
TURNS = "Call tools as long as that helps; when nothing is left to call, answer in words without a call.\n"
REPLY = "Now answer the question in words, from what the calls returned. Make no further call."


def described(tools: Sequence[ToolSpec]) -> str:
    """The tools, one JSON object a line."""
    return "\n".join(
        json.dumps(tool.to_chat()["function"], ensure_ascii=False, separators=(",", ":")) for tool in tools
    )


def segments(
    example: ToolExample, template: str = "plain", form: str = "json", *, answer: bool = False
) -> list[Segment]:
    """The prompt of an example, and with `answer` its calls as the learnt segment."""
    system = f"{HOW[form]}\nTools:\n{described(example.tools)}"
    turns = [("system", system), *example.context, ("user", example.query)]
    made = [Segment(_written(turns, template, "Calls:"))]
    if answer:
        lead, end = ENDS[template]
        made.append(Segment(f"{lead}{render(example.calls or (), form)}{end}", "assistant", True))
    return made


def conversation(
    tools: Sequence[ToolSpec],
    messages: Sequence[Mapping[str, Any]],
    template: str = "plain",
    form: str = "json",
    *,
    steps: bool = True,
    turns: bool = False,
) -> list[Segment]:
    """The prompt of the next turn in a chat-completions conversation without its system turn.

    Args:
        messages: turns of user, assistant (with `tool_calls`) and tool. steps: ask for a thought and calls, ended by
            `Finish`; else for calls alone at first, and for words once something was observed. turns: for calls or
            words, whichever is due, as in a conversation of several turns.
    """
    reply = not (steps or turns) and any(message["role"] == "tool" for message in messages)
    how = f"{TURNS if turns else STEPS if steps else ''}{REPLY if reply else HOW[form]}"
    given = [("system", f"{how}\nTools:\n{described(tools)}"), *((m["role"], said(m, form)) for m in messages)]
    return [Segment(_written(given, template, "Assistant:" if steps or turns or reply else "Calls:"))]


def said(message: Mapping[str, Any], form: str) -> str:
    """A turn as text: what was said, and below it the calls."""
    calls = [Call(call["name"], call["arguments"]) for call in message.get("tool_calls", ())]
    return "\n".join(filter(None, [message.get("content") or "", render(calls, form) if calls else ""]))


def _written(turns: Sequence[tuple[str, str]], template: str, cue: str) -> str:
    """The turns as text, up to where the model goes on."""
    if template not in TEMPLATES:
        known = f"known: {', '.join(TEMPLATES)}"
        raise TemplateError(f"unknown template '{template}'", hint=nearest(template, TEMPLATES) or known)
    how = TEMPLATES[template]
    return "".join(how.written(role, text) for role, text in turns) + (cue if how.cue is None else how.cue)
