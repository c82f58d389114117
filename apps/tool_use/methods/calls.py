"""`tool_use.calls`: learn to write the right calls for a question and the tools at hand (Qin et al. 2023, ToolLLM)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.tool_use import prompts
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError

if TYPE_CHECKING:
    from apps.tool_use.data import ToolExample
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class CallsConfig:
    """Options of `tool_use.calls`."""

    template: str = key("plain", "prompt template", one_of=prompts.TEMPLATES)
    form: Literal["json", "hermes", "python"] = key("json", "how calls are written")
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")


@method("tool_use.calls", config=CallsConfig)
def calls(ctx: StageContext) -> Stage:
    """Rows of a prompt with tools and the calls, which alone carry the loss."""
    from core.training.stage import Stage

    options = ctx.options

    def rows(examples: Iterable[ToolExample]) -> list[Any]:
        made = []
        for number, example in enumerate(examples, 1):
            if example.calls is None:
                raise DataError(f"example {number} has no calls to learn", got=example.query)
            made.append(prompts.segments(example, options.template, options.form, answer=True))
        return made

    held_out = [example for example in ctx.eval or () if example.calls is not None]
    return Stage(rows=rows(ctx.train), eval_rows=rows(held_out), mode=options.mode)
