"""Prompt templates as data, and the fields that an example fills them with.

Fields: `{spec}` words, `{header}` the module header with a line break or nothing, `{top}` the module's name, `{code}`
the answer, `{kinds}` the kinds of HLS bugs, and for repairs `{wrong}` the last attempt and `{feedback}` what its check
said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.data.segments import Segment, Template, find_template

if TYPE_CHECKING:
    from apps.rtl.example import RtlExample


def _template(name: str, prompt: str) -> Template:
    return Template(name, (Segment(prompt), Segment("{code}", role="assistant", train=True)))


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _template("spec", "// Write the Verilog module {top}.\n// {spec}\n{header}//---\n"),
        _template(
            "instruct",
            "Write a synthesizable Verilog module named {top}. Answer with the code only.\n\n{spec}\n\n{header}\n",
        ),
        _template(
            "repair",
            "// Write the Verilog module {top}.\n// {spec}\n{header}// This attempt is wrong:\n{wrong}\n"
            "// {feedback}\n//---\n",
        ),
        _template(
            "assert",
            "// Write SystemVerilog assertions for the module {top}, one a line: assert property (@(posedge …) …);\n"
            "// {spec}\n{header}//---\n",
        ),
        _template(
            "hls",
            "{spec}\n// Which bugs does this C++ for synthesis hold? type ({kinds}), line, repair:\n",
        ),
    )
}


def get_template(name: str) -> Template:
    """The template called `name`, or a `TemplateError` with the nearest name."""
    return find_template(TEMPLATES, name)


def fields(example: RtlExample, wrong: str = "", feedback: str = "") -> dict[str, str]:
    """What an example puts into a template; every line of the specification and the feedback stays a comment."""
    from apps.rtl.harness import reference_as_candidate
    from apps.rtl.hls.dataset import TYPES

    words = example.spec if example.task == "hls" else "\n// ".join(example.spec.splitlines())
    code = reference_as_candidate(example).strip() + "\n" if example.reference else ""
    return {
        "spec": words,
        "header": f"{example.header.strip()}\n" if example.header.strip() else "",
        "top": example.top,
        "code": code if example.answer is None else example.answer.strip() + "\n",
        "kinds": " ".join(TYPES),
        "wrong": wrong.strip(),
        "feedback": "\n// ".join(feedback.splitlines()),
    }
