"""Supervised fine-tuning on operators and kernels that are right: the baseline that every other method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apps.cuda import prompts
from apps.cuda.example import CudaExample
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment, render
from core.errors import DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class SftConfig:
    """Options of `cuda.sft`."""

    template: str = key("plain", "prompt template", one_of=prompts.TEMPLATES)
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")


@method("cuda.sft", config=SftConfig)
def sft(ctx: StageContext) -> Stage:
    """Prompted solutions, loss on plan, kernels and their end."""
    from core.training.stage import Stage

    rows = [row_of(example, ctx.options.template) for example in ctx.train]
    held = [row_of(example, ctx.options.template) for example in ctx.eval or () if example.solution]
    return Stage(rows=rows, eval_rows=held, layout="rows", mode=ctx.options.mode)


def row_of(example: CudaExample, template: str) -> list[Segment]:
    """Prompt and solution of an example. Raises `DataError` where there is no solution."""
    if example.solution is None:
        raise DataError("training needs a solution, and this row has none", field="solution", got=example.id)
    return render(prompts.get_template(template), prompts.fields(example))
