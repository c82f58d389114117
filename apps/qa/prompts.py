"""Prompts of questions as data, and the examples that stand before one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from apps.qa.data import QaExample
from core.data.segments import Segment, Template, find_template

Form = Literal["text", "json"]
NAMED = ("factoid", "list")
"""Types of questions whose answers are names, best first."""
NAMES: dict[str, Any] = {
    "type": "array", "minItems": 1, "maxItems": 5, "items": {"type": "string", "minLength": 1, "maxLength": 60},
}  # fmt: skip
"""What an answer in JSON must be: up to five candidates count."""


def _template(name: str, text: str) -> Template:
    return Template(name, (Segment(text), Segment(" {answer}\n", role="assistant", train=True)))


TEMPLATES = {
    template.name: template
    for template in (
        _template("rag", "{shots}Context: {context}\nQuestion: {question}\nAnswer:"),
        _template("closed", "{shots}Question: {question}\nAnswer:"),
    )
}


def get_template(name: str) -> Template:
    """The template called `name`, or a `TemplateError` with the nearest name."""
    return find_template(TEMPLATES, name)


def answered(example: QaExample, form: Form = "text") -> str:
    """The reference as the model is to write it; as JSON the names of a factoid or a list are an array."""
    if form == "json" and example.type in NAMED:
        return json.dumps([group[0] for group in example.answers if group], ensure_ascii=False)
    return example.answer


def fields(example: QaExample, shots: str = "", context_chars: int = 2000, form: Form = "text") -> dict[str, str]:
    """What a question puts into a template; passages are cut at a word to `context_chars` characters."""
    context = " ".join(" ".join(example.contexts).split())
    if len(context) > context_chars:
        context = context[:context_chars].rpartition(" ")[0]
    question = " ".join(example.question.split())
    return {"shots": shots, "context": context, "question": question, "answer": answered(example, form)}


def shots_text(template: Template, shots: Sequence[QaExample], context_chars: int, form: Form = "text") -> str:
    """Answered questions, one after the other, as they stand before the one that is asked."""
    parts = []
    for shot in shots:
        filled = fields(shot, "", context_chars, form)
        parts.append("".join(segment.text.format(**filled) for segment in template.segments) + "\n")
    return "".join(parts)
