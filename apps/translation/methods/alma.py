"""ALMA (Xu et al. 2023, "A Paradigm Shift in Machine Translation"): monolingual text first, then few clean pairs.

`translation.mono` continues language modelling on documents of all languages, each followed by end of text, joined
and cut into blocks; every token is trained. English must stay in the mix or it is forgotten. `translation.parallel`
trains on pairs with a prompt, in both directions, and only target and end of text carry loss. This file knows how
rows look, and nothing of optimisers or devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from apps.translation import prompts
from apps.translation.data import TranslationExample
from apps.translation.languages import language
from core.config.limits import MONO
from core.config.registry import method
from core.config.schema import key
from core.data.row_stream import rows_of
from core.data.segments import Segment, render
from core.errors import DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class MonoConfig:
    """Options of `translation.mono`. Weights of the sources say how they alternate; `shares` says what is kept."""

    shares: dict[str, float] = key({}, "share of each language's characters, e.g. {de: 0.5, en: 0.5}; empty keeps all")
    sides: Literal["both", "src", "tgt"] = key("both", "which texts of a pair become documents, if pairs are given")


@dataclass(frozen=True)
class ParallelConfig:
    """Options of `translation.parallel`."""

    template: str = key("alma", "prompt template", one_of=prompts.TEMPLATES)
    directions: Literal["both", "forward"] = key("both", "train each pair in both directions or as it is read")
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")


@method("translation.mono", config=MonoConfig, limits=MONO, streams=True)
def mono(ctx: StageContext) -> Stage:
    """Documents as blocks, all tokens trained."""
    from core.training.stage import Stage

    def texts(example: TranslationExample) -> list[str]:
        sides = ("src", "tgt") if ctx.options.sides == "both" else (ctx.options.sides,)
        found = [example.src] if example.monolingual else [getattr(example, side) for side in sides]
        return [text for text in found if text]

    def row(text: str) -> list[Segment]:
        return [Segment(text, role="document", train=True)]

    train = keep_shares(ctx.train, ctx.options.shares) if ctx.options.shares else ctx.train
    return Stage(rows_of(train, row, texts), rows_of(ctx.eval or (), row, texts), layout="blocks")


@method("translation.parallel", config=ParallelConfig, streams=True)
def parallel(ctx: StageContext) -> Stage:
    """Prompted pairs, loss on target and end of text."""
    from core.training.stage import Stage, bad_rows_of

    template = prompts.get_template(ctx.options.template)

    def row(example: TranslationExample) -> list[Segment]:
        return render(template, prompts.fields(example))

    def fault(number: int, example: TranslationExample) -> DataError | None:
        if example.tgt is not None:
            return None
        return DataError(
            f"translation.parallel needs pairs, and row {number} has no translation",
            field="tgt",
            got=example.src,
            hint="give parallel sources to this stage; monolingual ones belong to translation.mono. data.on_bad: skip "
            "leaves such rows out",
        )

    def directions(example: TranslationExample) -> list[TranslationExample]:
        both = ctx.options.directions == "both" and example.tgt is not None
        return [example, example.reversed()] if both else [example]

    bad = bad_rows_of(ctx.recipe, ctx.run)
    train = rows_of(ctx.train, row, directions, fault, bad)
    held_out = rows_of(ctx.eval or (), row, fault=fault, bad=bad)
    return Stage(train, held_out, mode=ctx.options.mode)


def keep_shares(examples: Iterable[TranslationExample], shares: dict[str, float]) -> list[TranslationExample]:
    """As many monolingual documents as `shares` of characters allow, the scarcest language deciding; order is kept.

    Raises:
        DataError: a language has a share and no text, or text and no share.
    """
    weights = {language(code).code: share for code, share in shares.items()}
    rows = list(examples)
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row.src_lang] += len(row.src)
    for code in sorted(set(weights) ^ set(sizes)):
        lacks = "text" if code in weights else "share"
        raise DataError(f"language '{code}' has no {lacks}", field="shares", got=shares, expected=sorted(sizes))
    total = min(sizes[code] / share for code, share in weights.items() if share > 0)
    taken: Counter[str] = Counter()
    kept = []
    for row in rows:
        if taken[row.src_lang] < weights[row.src_lang] * total:
            taken[row.src_lang] += len(row.src)
            kept.append(row)
    return kept
