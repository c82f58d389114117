"""Prompt templates as data, and the fields that an example fills them with.

A template is a list of segments, of which the last is trained. The space before a target opens the trained segment
and does not end the prompt, so that the ids of the prompt are the same in training and in serving. Fields: `{S}` and
`{T}` English names, `{src_lang}` and `{tgt_lang}` codes, `{src}` and `{tgt}` texts, `{terms}` one "source = target"
line for each required term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.translation.languages import direction
from core.data.segments import Segment, Template, find_template

if TYPE_CHECKING:
    from apps.translation.data import TranslationExample


def _template(name: str, *prompt: Segment | str, sep: str = " ") -> Template:
    segments = [Segment(part) if isinstance(part, str) else part for part in prompt]
    return Template(name, (*segments, Segment(sep + "{tgt}", role="assistant", train=True)))


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # ALMA (Xu et al. 2023), as in the authors' code: "to", and the target after "Language:".
        _template("alma", "Translate this from {S} to {T}:\n{S}: {src}\n{T}:"),
        _template("alma_terms", "Translate this from {S} to {T}:\n{terms}{S}: {src}\n{T}:"),
        _template("plain", "{S}: {src}\n{T}:"),
        _template("codes", "[{src_lang}] {src}\n[{tgt_lang}]"),
        _template("instruct", "Translate the following text from {S} to {T}.\n\n{src}\n\nTranslation:"),
        _template(
            "chatml",
            Segment("<|im_start|>system\nYou translate from {S} to {T}.<|im_end|>\n", role="system"),
            Segment("<|im_start|>user\n{src}<|im_end|>\n", role="user"),
            Segment("<|im_start|>assistant\n", role="user"),
            sep="",
        ),
        _template("question", "Q: How do you say this {S} text in {T}? {src}\nA:"),
    )
}


def get_template(name: str) -> Template:
    """The template called `name`, or a `TemplateError` with the nearest name."""
    return find_template(TEMPLATES, name)


def uses_terms(template: Template) -> bool:
    """Whether the template has a place for a glossary."""
    return any("{terms}" in segment.text for segment in template.segments)


def fields(example: TranslationExample) -> dict[str, str]:
    """What an example puts into a template; a line break in a text becomes a space, as it would end the answer."""
    src, tgt = direction(example.src_lang, example.tgt_lang)
    return {
        "S": src.name,
        "T": tgt.name,
        "src_lang": src.code,
        "tgt_lang": tgt.code,
        "src": one_line(example.src),
        "tgt": one_line(example.tgt or ""),
        "terms": "".join(f"{source} = {target}\n" for source, target in example.terms),
    }


def one_line(text: str) -> str:
    """The text without line breaks and outer spaces; inner spaces stay."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
