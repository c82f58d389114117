"""How an instruction is put before a text, as data."""

from __future__ import annotations

from core.errors import TemplateError, nearest

TEMPLATES = {
    # The line break ends a token in every tokenizer, so that no token is half instruction and half text.
    "lines": "Instruct: {task}\nQuery:\n",
    "nv": "Instruct: {task}\nQuery: ",
    "plain": "{task}: ",
    "none": "",
}


def prompt_of(template: str, task: str) -> str:
    """The text before a query; empty where there is no instruction. Raises `TemplateError` for an unknown template."""
    if template not in TEMPLATES:
        hint = " ".join(filter(None, [nearest(template, TEMPLATES), f"known: {', '.join(TEMPLATES)}"]))
        raise TemplateError(f"unknown template '{template}'", hint=hint)
    return TEMPLATES[template].format(task=task) if task else ""
