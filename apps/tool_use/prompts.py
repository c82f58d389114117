"""How tools and questions are put to a model, as segments: the tools as JSON, the turns, and the calls to learn."""

from __future__ import annotations

import json
from collections.abc import Sequence

from apps.tool_use.calls import render
from apps.tool_use.data import ToolExample
from apps.tool_use.spec import ToolSpec
from core.data.segments import Segment
from core.errors import TemplateError, nearest

TEMPLATES = ("plain", "chatml")
HOW = {
    "json": 'Answer with a JSON list of calls: [{"name": …, "arguments": {…}}].',
    "hermes": 'Answer with calls: <tool_call>{"name": …, "arguments": {…}}</tool_call>.',
    "python": "Answer with a list of function calls: [name(argument=value)].",
}


def described(tools: Sequence[ToolSpec]) -> str:
    """The tools, one JSON object a line."""
    return "\n".join(
        json.dumps(tool.to_chat()["function"], ensure_ascii=False, separators=(",", ":")) for tool in tools
    )


def segments(
    example: ToolExample, template: str = "plain", form: str = "json", *, answer: bool = False
) -> list[Segment]:
    """The prompt of an example, and with `answer` its calls as the learnt segment."""
    if template not in TEMPLATES:
        known = f"known: {', '.join(TEMPLATES)}"
        raise TemplateError(f"unknown template '{template}'", hint=nearest(template, TEMPLATES) or known)
    system = f"{HOW[form]}\nTools:\n{described(example.tools)}"
    turns = [("system", system), *example.context, ("user", example.query)]
    if template == "chatml":
        text = (
            "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
        )
        lead, end = "", "<|im_end|>"
    else:
        text = "".join(f"{role.capitalize()}: {content}\n" for role, content in turns) + "Calls:"
        lead, end = " ", ""
    made = [Segment(text)]
    if answer:
        made.append(Segment(f"{lead}{render(example.calls or (), form)}{end}", "assistant", True))
    return made
