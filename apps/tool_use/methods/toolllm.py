"""`tool_use.toolllm`: learn to solve tasks in steps from solved ones (Qin et al. 2023, ToolLLM).

Every turn of the assistant on the way to an answer is a row: the conversation before it is given, the turn is learnt.
The prompts are those of `ToolUsePipeline`, with the same function, so that what is trained is what is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.tool_use import prompts
from apps.tool_use.pipeline import FunctionCallPipeline
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment
from core.errors import DataError
from core.inference.request import Request

if TYPE_CHECKING:
    from apps.tool_use.trajectories import Turn
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class ToolLlmConfig:
    """Options of `tool_use.toolllm`."""

    template: str = key("plain", "prompt template", one_of=prompts.TEMPLATES)
    form: Literal["json", "hermes", "python"] = key("json", "how calls are written")
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")


def row_of(turn: Turn, template: str = "plain", form: str = "json") -> list[Segment]:
    """The conversation before the turn as given, the turn as learnt."""
    from apps.tool_use.trajectories import reply

    lead, end = prompts.ENDS[template]
    text = prompts.said(reply(turn), form)
    return [*prompts.conversation(turn.tools, turn.messages, template, form),
            Segment(f"{lead}{text}{end}", "assistant", True)]  # fmt: skip


class StepPipeline(FunctionCallPipeline):
    """The next turn of a conversation: a thought and calls. Examples are `Turn`s."""

    def prepare(self, example: Any) -> Request:
        template, form = self.config.template or "plain", self.config.form
        request = self.request(prompts.conversation(example.tools, example.messages, template, form))
        self._check_room(request, example.tools)
        return self._kept(request, example.tools, thought=True)


@method("tool_use.toolllm", config=ToolLlmConfig, tiny="tiny-2k")
def toolllm(ctx: StageContext) -> Stage:
    """A row for every turn."""
    from core.training.stage import Stage

    options = ctx.options

    def rows(examples: Iterable[Turn]) -> list[Any]:
        return [row_of(turn, options.template, options.form) for turn in examples]

    if not ctx.train:
        raise DataError("no solved task to learn from", hint="trees without an answer give no rows")
    return Stage(rows=rows(ctx.train), eval_rows=rows(ctx.eval or ()), mode=options.mode)
