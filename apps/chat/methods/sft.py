"""`chat.sft`: supervised fine-tuning on conversations (Ouyang et al. 2022).

What the assistant says carries the loss, with the mark that ends its turn. With `keep`, only those rows are learnt that
the base finds plausible and that differ most (`core.training.choose_rows`). Streamed conversations are rendered when
their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.chat import prompts
from core.config.limits import CHAT_SFT
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError

if TYPE_CHECKING:
    from apps.chat.data import ChatExample
    from core.data.row_stream import RowStream
    from core.training.stage import Stage, StageContext

LEAVES_OUT = "data.on_bad: skip leaves such rows out"
ENDS_SO = "a conversation to learn from ends with what the assistant says"


@dataclass(frozen=True)
class SftConfig:
    """Options of `chat.sft`."""

    template: prompts.Template = key("auto", "chat template; auto is the model's own where it has one, else plain")
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    every_turn: bool = key(True, "learn all of the assistant's turns, or the last one alone")
    system: str | None = key(None, "system text of conversations that have none")
    keep: float | None = key(None, "share of the rows to learn, chosen with the base; null learns all", above=0, most=1)
    prefer: Literal["low", "high"] = key("low", "rows of low loss under the base, which it finds plausible, or of high")


def with_system(example: ChatExample, system: str | None) -> tuple[tuple[str, str], ...]:
    """The turns, with a system text in front where the conversation has none."""
    if system and example.messages[0][0] != "system":
        return (("system", system), *example.messages)
    return example.messages


def look(examples: Sequence[ChatExample], recipe: Any, options: SftConfig) -> None:
    """Raises `DataError` where conversations have no answer to learn, as `data.on_bad` says."""
    without = [number for number, example in enumerate(examples, 1) if example.answer is None]
    count, of = len(without), len(examples)
    if without and (recipe.data.on_bad == "raise" or count == of):
        raise DataError(
            f"{count} of {of} conversations have no answer to learn; the first is number {without[0]}",
            got=examples[without[0] - 1].messages[-1][1],
            hint=LEAVES_OUT if count < of else ENDS_SO,
        )


@method("chat.sft", config=SftConfig, limits=CHAT_SFT, look=look, streams=True)
def sft(ctx: StageContext) -> Stage:
    """Rows of given and learnt segments."""
    from core.training.stage import Stage

    options = ctx.options

    def row(example: ChatExample) -> list[Any]:
        turns = (*with_system(example, options.system), ("assistant", example.answer or ""))
        return prompts.segments(turns, ctx.tokenizer, options.template, every_turn=options.every_turn)

    held_out = [row(example) for example in ctx.eval or () if example.answer is not None]
    if not isinstance(ctx.train, Sequence):
        return Stage(rows=streamed(ctx, row), eval_rows=held_out, mode=options.mode)
    learnt = [row(example) for example in answered(ctx)]
    if options.keep is not None:
        learnt = chosen(ctx, learnt)
    return Stage(rows=learnt, eval_rows=held_out, mode=options.mode)


def streamed(ctx: StageContext, row: Callable[[ChatExample], list[Any]]) -> RowStream:
    """The rows of conversations that are read while training; those without an answer are bad rows."""
    from core.data.row_stream import RowStream
    from core.training.stage import bad_rows_of

    def fault(number: int, example: ChatExample) -> DataError | None:
        if example.answer is not None:
            return None
        return DataError(f"conversation {number} has no answer to learn", got=example.messages[-1][1], hint=LEAVES_OUT)

    return RowStream(ctx.train, row, fault=fault, bad=bad_rows_of(ctx.recipe, ctx.run))


def answered(ctx: StageContext) -> list[ChatExample]:
    """The training conversations that end in an answer; one that does not is a bad row, as `data.on_bad` says."""
    from core.training.callbacks import say

    found = list(ctx.train)
    look(found, ctx.recipe, ctx.options)
    without = [example for example in found if example.answer is None]
    if without and ctx.run is not None:
        say(ctx.run, f"{len(without)} of {len(found)} conversations have no answer to learn and are left out")
    return [example for example in found if example.answer is not None]


def chosen(ctx: StageContext, rows: list[Any]) -> list[Any]:
    """The share of the rows that the options ask for; a plan counts as many and looks at none."""
    from core.data.encode import encode_stream
    from core.distributed.launch import agreed
    from core.inference.load import pick_device
    from core.training.callbacks import say
    from core.training.choose_rows import choose

    options, recipe = ctx.options, ctx.recipe
    if ctx.run is None:
        return rows[: max(1, round(options.keep * len(rows)))]
    encoded = list(encode_stream(rows, ctx.tokenizer, mode=options.mode, max_length=recipe.data.max_length))
    numbers = agreed(
        choose(
            encoded,
            recipe.model,
            ctx.tokenizer,
            share=options.keep,
            prefer=options.prefer,
            device=pick_device(recipe.backend.device),
            seed=recipe.seed,
        )
    )
    say(ctx.run, f"kept {len(numbers)} of {len(rows)} rows: of {options.prefer} loss under the base, and different")
    return [rows[i] for i in numbers]
