"""Fine-tuning on answered questions: prompts as the pipeline sends them, loss on the answers.

With `model.quantization: nf4` and a LoRA adapter this is QLoRA (Dettmers et al. 2023). This file knows how rows look
and nothing of optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.qa import prompts
from apps.qa.data import QaExample
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment, render
from core.errors import DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class SftConfig:
    """Options of `qa.sft`."""

    template: str = key("rag", "prompt template", one_of=prompts.TEMPLATES)
    context_chars: int = key(1500, "characters of passages of a question", least=1)
    answers: Literal["text", "json"] = key("text", "how the names of factoids and lists are written: text, json")


@method("qa.sft", config=SftConfig)
def sft(ctx: StageContext) -> Stage:
    """Prompted questions, loss on the answer and the line break behind it."""
    from core.training.stage import Stage

    template = prompts.get_template(ctx.options.template)

    def row(example: QaExample) -> list[Segment]:
        if not example.answers:
            raise DataError("qa.sft needs answers", field="answers", got=example.question)
        return render(template, prompts.fields(example, "", ctx.options.context_chars, ctx.options.answers))

    rows: Any = [row(example) for example in ctx.train]
    return Stage(rows=rows, eval_rows=[row(example) for example in ctx.eval or ()])
