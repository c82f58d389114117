"""Prompt templates as data, and the fields that an example fills them with.

Fields: `{reference}` the PyTorch module, `{spec}` words or nothing, `{answer}` the plan and the kernels, and for the
search `{best}` the best kernel so far, `{wrong}` one that fails, `{feedback}` what the check said of both, `{device}`
facts, `{rules}` what an answer is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.data.segments import Segment, Template, find_template

if TYPE_CHECKING:
    from apps.cuda.example import CudaExample

RULES = (
    "Answer with one piece of CUDA C++ that begins with a comment `/* launch {...} */`, the launch plan in JSON: "
    '"launches" lists {"kernel", "grid", "block", "shared", "args"}; sizes are integers or arithmetic such as '
    '"(size(x) + 255) // 256" or "x[0]"; args name inputs, weights, outputs (out), scratch buffers or sizes; '
    '"scratch": {"name": {"dtype": "float32", "size": "..."}}; "zero" lists outputs and scratch to clear first. '
    "No host code, no state between launches. Shapes vary: check bounds."
)


def _template(name: str, prompt: str) -> Template:
    return Template(name, (Segment(prompt), Segment("{answer}", role="assistant", train=True)))


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _template("plain", "// CUDA for:\n{reference}\n// {spec}\n//---\n"),
        _template("words", "// {spec}\n//---\n"),
        _template(
            "instruct", "Write fast CUDA kernels for this PyTorch module.\n\n{reference}\n\n{spec}\n{rules}\n\n"
        ),
        _template(
            "search",
            "Write faster CUDA kernels for this PyTorch module.\n\n{reference}\n\n{rules}\n\n"
            "Device: {device}\n\nThe best so far:\n{best}\n{feedback}\n\nOne that fails:\n{wrong}\n\n",
        ),
    )
}  # fmt: skip


def get_template(name: str) -> Template:
    """The template called `name`, or a `TemplateError` with the nearest name."""
    return find_template(TEMPLATES, name)


def fields(
    example: CudaExample, best: str = "none yet", feedback: str = "", wrong: str = "none", device: str = ""
) -> dict[str, str]:
    """What an example puts into a template."""
    return {
        "reference": example.reference.strip(),
        "spec": " ".join(example.spec.split()),
        "answer": (example.solution or "").strip() + "\n" if example.solution else "",
        "best": best.strip(), "feedback": feedback, "wrong": wrong.strip(), "device": device, "rules": RULES,
    }  # fmt: skip
