"""A training row as text: segments that are either given or learnt.

A `Template` is data, not code: named segments with `{fields}`. A chat template is one renderer of segments; the
segments are the source. Nothing here knows of tokens.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.errors import TemplateError, nearest


@dataclass(frozen=True)
class Segment:
    """A piece of a row. `train` says whether its tokens carry loss.

    Args:
        source: characters [start, end) of `text` that may be cut when a row is too long; None where nothing may.
    """

    text: str
    role: str = "user"
    train: bool = False
    source: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Template:
    """A prompt format.

    Args:
        name: how recipes call it.
        segments: pieces whose text holds `{fields}`.
    """

    name: str
    segments: tuple[Segment, ...]

    def fields(self) -> set[str]:
        """Names of the fields that the template needs."""
        return {f for s in self.segments for _, f, _, _ in string.Formatter().parse(s.text) if f}


def render(template: Template, fields: Mapping[str, object]) -> list[Segment]:
    """The template with its fields filled in. Raises `TemplateError` naming a missing field.

    Braces inside a field's value are kept: only the template's own text is read for fields. The longest value of each
    given segment becomes the part that may be cut, so that instructions and cues survive.
    """
    missing = template.fields() - set(fields)
    if missing:
        name = sorted(missing)[0]
        raise TemplateError(
            f"template '{template.name}' needs the field '{name}'", hint=nearest(name, map(str, fields)) or None
        )
    return [_fill(segment, fields) for segment in template.segments]


def _fill(segment: Segment, fields: Mapping[str, object]) -> Segment:
    text, longest = "", (0, 0)
    for literal, name, spec, conversion in string.Formatter().parse(segment.text):
        text += literal
        if name is None:
            continue
        pattern = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
        value = pattern.format_map(fields)
        if len(value) > longest[1] - longest[0]:
            longest = (len(text), len(text) + len(value))
        text += value
    source = longest if longest[1] > longest[0] and not segment.train else None
    return Segment(text, segment.role, segment.train, source)


def prompt_segments(segments: Sequence[Segment]) -> list[Segment]:
    """What the model is given at inference: everything before the first learnt segment."""
    prompt = []
    for segment in segments:
        if segment.train:
            break
        prompt.append(segment)
    return prompt


def find_template(templates: Mapping[str, Template], name: str) -> Template:
    """The template called `name`, or a `TemplateError` with the nearest one."""
    if name not in templates:
        hint = " ".join(filter(None, [nearest(name, templates), f"known: {', '.join(templates)}"]))
        raise TemplateError(f"unknown template '{name}'", hint=hint)
    return templates[name]
