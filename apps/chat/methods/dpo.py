"""`chat.dpo`: better against worse answers, by direct preference optimisation (Rafailov et al. 2023).

`weighting: wpo` weighs each pair by how probable the policy finds it (Zhou et al. 2024, "WPO: Enhancing RLHF with
weighted preference optimization"), which makes stored pairs act more like the policy's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.chat import prompts
from apps.chat.methods.sft import with_system
from core.config.limits import DPO
from core.config.registry import method
from core.config.schema import key
from core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from apps.chat.data import ChatExample
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class DpoConfig:
    """Options of `chat.dpo`."""

    template: prompts.Template = key("auto", "chat template; auto is the model's own where it has one, else plain")
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    system: str | None = key(None, "system text of conversations that have none")
    beta: float = key(0.1, "how strongly the policy is held to the reference", above=0)
    weighting: Literal["none", "wpo"] = key("none", "weight of a pair: 1, or its probability under the policy")
    sft: float = key(0.0, "weight of the likelihood of the better answer, added to the loss", least=0)
    label_smoothing: float = key(0.0, "share of pairs taken to be labelled the wrong way round", least=0, most=0.49)


def look(examples: Iterable[ChatExample], recipe: Any, options: DpoConfig) -> None:
    """Raises for a conversation without both answers, and for a likelihood that pairs would weigh."""
    if options.sft and options.weighting != "none":
        raise ConfigError(
            "a likelihood is not weighed by pairs", where="with.sft", hint="set weighting: none, or sft: 0"
        )
    for number, example in enumerate(examples, 1):
        if example.answer is None or example.rejected is None:
            raise DataError(
                f"conversation {number} has no better and worse answer",
                field="rejected" if example.rejected is None else "chosen",
                got=example.messages[-1][1],
                hint='use the reader "preferences"',
            )


@method("chat.dpo", config=DpoConfig, limits=DPO, look=look)
def dpo(ctx: StageContext) -> Stage:
    """Pairs of answers behind one prompt."""
    from core.training.preference.dpo import DpoTrainer
    from core.training.preference.pairs import Pair, encode_pairs
    from core.training.stage import Stage

    options = ctx.options

    def pairs(examples: Iterable[ChatExample]) -> list[Any]:
        rows = []
        for example in examples:
            turns = with_system(example, options.system)
            answers = [(*turns, ("assistant", str(text))) for text in (example.answer, example.rejected)]
            made = [prompts.segments(a, ctx.tokenizer, options.template, every_turn=False) for a in answers]
            rows.append(Pair(*made))
        return rows

    look(ctx.train, ctx.recipe, options)
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, options.sft]} if options.sft else {}
    held_out = [example for example in ctx.eval or () if example.answer and example.rejected]
    return Stage(
        rows=pairs(ctx.train),
        eval_rows=pairs(held_out),
        mode=options.mode,
        encoder=encode_pairs,
        trainer=DpoTrainer,
        trainer_options={
            "tokenizer": ctx.tokenizer,
            "options": {
                "beta": options.beta,
                "use_weighting": options.weighting == "wpo",
                "label_smoothing": options.label_smoothing,
                "max_length": None,
                **losses,
            },
        },
    )
