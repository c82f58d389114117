"""MT-LLM (Schmidt et al. 2024): a language model reads what a translation encoder understands, taught by itself.

`lm.stack` teaches a projection and an adapter on English alone: the student must give the vector that the language
model gives the same text. For a task two stages follow: `lm.stack_tune` tunes the language model by itself, with an
adapter of its own and a head, on labelled English; `lm.stack_task` lets the student imitate the vectors of that model,
computed once before the first step, and leaves the head as it is. Other languages come from the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from core.config.limits import CONTRASTIVE, Limit
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext

KINDS = ("lora", "bottleneck", "series", "series_after_mlp", "parallel")


def _lacks(part: str) -> Any:
    """Whether a model block has none of a part; one that names no base belongs to a stage, which only changes it."""
    return lambda model: bool(model.get("path") or model.get("preset")) and not model.get(part)


STACKED = (
    Limit("model", _lacks("edits"), "no encoder stands under the language model",
          "add model.edits: [{kind: mt_encoder, path: /models/nllb}]"),
    Limit("model", _lacks("adapters"),
          "the language model is its own teacher with its adapters off, and there are none",
          "add model.adapters: [{kind: lora, r: 16, alpha: 32}]"),
    Limit("model.adapters", lambda found: any(adapter.get("kind", "lora") not in KINDS for adapter in found),
          "of one of them no stacked model was tried", f"take one of {', '.join(KINDS)}"),
    Limit("model.adapters", lambda found: len(found) > 1 or any(adapter.get("path") for adapter in found),
          "the student's adapter stands alone", "give one, without a path"),
    *(limit for limit in CONTRASTIVE if limit.key != "train.batch.micro"),
)  # fmt: skip


@dataclass(frozen=True)
class StackConfig:
    """Options of `lm.stack`, `lm.stack_tune` and `lm.stack_task`."""

    english: str = key("en", "the language of the training texts, which the language model knows")


@method("lm.stack", config=StackConfig, limits=STACKED)
def general(ctx: StageContext) -> Stage:
    """The student learns the language model's own vectors of English text."""
    return _stage(ctx, "general", _english(ctx, ctx.train), _held_out(ctx))


@method("lm.stack_tune", config=StackConfig, limits=STACKED)
def tune(ctx: StageContext) -> Stage:
    """The language model learns a task by itself, on labelled English."""
    train, held_out = (
        [example for example in rows if example.label] for rows in (_english(ctx, ctx.train), _held_out(ctx))
    )
    labels = sorted({example.label for example in train})
    if len(labels) < 2:
        raise DataError(
            f"the texts have {len(labels)} classes",
            field="label",
            got=", ".join(labels),
            hint="a task has two at least",
        )
    strange = [example for example in held_out if example.label not in labels]
    if strange and ctx.run is not None:
        from core.training.callbacks import say

        say(ctx.run, f"{len(strange)} held-out texts are of classes that none is trained on, such as "
                     f"'{strange[0].label}'; their answers are wrong")  # fmt: skip
    held_out = [example for example in held_out if example.label in labels]
    return _stage(ctx, "tune", train, held_out, labels)


@method("lm.stack_task", config=StackConfig, limits=STACKED)
def task(ctx: StageContext) -> Stage:
    """The student learns the vectors of the language model that was tuned."""
    return _stage(ctx, "task", _english(ctx, ctx.train), _held_out(ctx))


def _english(ctx: StageContext, examples: Sequence[Any]) -> list[Any]:
    """The examples that the language model reads as well as the encoder."""
    from apps.lm.stacked.model import no_empty
    from core.training.callbacks import say

    kept = [example for example in examples if example.lang == ctx.options.english]
    left = len(examples) - len(kept)
    if not kept:
        raise DataError(
            f"none of {len(examples)} texts is in '{ctx.options.english}'", field="lang",
            hint="the stages learn on the language model's own language; with.english names it",
        )  # fmt: skip
    if left and ctx.run is not None:
        say(ctx.run, f"{left} of {len(examples)} texts are not in '{ctx.options.english}' and are left out")
    no_empty(kept)
    return kept


def _held_out(ctx: StageContext) -> list[Any]:
    """What the held-out texts say in English, each once: on these a loss can be told."""
    english, found = ctx.options.english, {}
    for example in ctx.eval:
        text = example.text if example.lang == english else example.english
        if text.strip():
            found.setdefault(text, replace(example, text=text, lang=english))
    return list(found.values())


def _stage(ctx: StageContext, part: str, train: list[Any], held_out: list[Any], labels: Sequence[str] = ()) -> Stage:
    from apps.lm.stacked.model import reader_of
    from apps.lm.stacked.trainer import encode_rows, trainer_of
    from core.training.stage import Stage

    reader = reader_of(ctx.recipe.model)
    numbers = {label: number for number, label in enumerate(labels)}
    return Stage(
        rows=train,
        eval_rows=held_out,
        encoder=partial(encode_rows, reader=reader, numbers=numbers),
        trainer=trainer_of(part),
        trainer_options={
            "labels": list(labels),
            "pads": (reader.tokenizer.pad_token_id or 0, ctx.tokenizer.pad_token_id or 0),
        },
    )
