"""`chat.sft`: supervised fine-tuning on conversations (Ouyang et al. 2022).

What the assistant says carries the loss, with the mark that ends its turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.chat import prompts
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError

if TYPE_CHECKING:
    from apps.chat.data import ChatExample
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class SftConfig:
    """Options of `chat.sft`."""

    template: str = key("auto", "chat template: " + ", ".join(prompts.NAMES))
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    every_turn: bool = key(True, "learn all of the assistant's turns, or the last one alone")
    system: str | None = key(None, "system text of conversations that have none")


def with_system(example: ChatExample, system: str | None) -> tuple[tuple[str, str], ...]:
    """The turns, with a system text in front where the conversation has none."""
    if system and example.messages[0][0] != "system":
        return (("system", system), *example.messages)
    return example.messages


@method("chat.sft", config=SftConfig)
def sft(ctx: StageContext) -> Stage:
    """Rows of given and learnt segments."""
    from core.training.stage import Stage

    options = ctx.options

    def rows(examples: Iterable[ChatExample]) -> list[Any]:
        made = []
        for number, example in enumerate(examples, 1):
            if example.answer is None:
                raise DataError(f"conversation {number} has no answer to learn", got=example.messages[-1][1])
            turns = (*with_system(example, options.system), ("assistant", example.answer))
            made.append(prompts.segments(turns, ctx.tokenizer, options.template, every_turn=options.every_turn))
        return made

    held_out = [example for example in ctx.eval or () if example.answer is not None]
    return Stage(rows=rows(ctx.train), eval_rows=rows(held_out), mode=options.mode)
