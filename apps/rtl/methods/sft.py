"""Supervised fine-tuning on specifications and their references: the baseline that every other method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apps.rtl import prompts
from apps.rtl.example import RtlExample
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment, render
from core.errors import DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class SftConfig:
    """Options of `rtl.sft`."""

    template: str = key("spec", "prompt template", one_of=prompts.TEMPLATES)
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")


@method("rtl.sft", config=SftConfig)
def sft(ctx: StageContext) -> Stage:
    """Prompted answers (references, assertions or bug reports), loss on the answer and its end."""
    from core.training.stage import Stage

    rows = [row_of(example, ctx.options.template) for example in ctx.train]
    held = [row_of(example, ctx.options.template) for example in ctx.eval or () if example.target]
    return Stage(rows=rows, eval_rows=held, layout="rows", mode=ctx.options.mode)


def row_of(example: RtlExample, template: str) -> list[Segment]:
    """Prompt and answer of an example. Raises `DataError` where there is none."""
    if not example.target:
        field = "reference" if example.task in ("spec", "completion") else "answer"
        raise DataError(f"training needs a {field}, and this row has none", field=field, got=example.spec)
    return render(prompts.get_template(template), prompts.fields(example))
