"""Prompts of questions as data, and the examples that stand before one."""

from __future__ import annotations

from collections.abc import Sequence

from apps.qa.data import QaExample
from core.data.segments import Segment, Template, find_template


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


def fields(example: QaExample, shots: str = "", context_chars: int = 2000) -> dict[str, str]:
    """What a question puts into a template; passages are cut at a word to `context_chars` characters."""
    context = " ".join(" ".join(example.contexts).split())
    if len(context) > context_chars:
        context = context[:context_chars].rpartition(" ")[0]
    question = " ".join(example.question.split())
    return {"shots": shots, "context": context, "question": question, "answer": example.answer}


def shots_text(template: Template, shots: Sequence[QaExample], context_chars: int) -> str:
    """Answered questions, one after the other, as they stand before the one that is asked."""
    parts = []
    for shot in shots:
        filled = fields(shot, "", context_chars)
        parts.append("".join(segment.text.format(**filled) for segment in template.segments) + "\n")
    return "".join(parts)
