"""ALMA-R's third stage (Xu et al. 2024, "Contrastive Preference Optimization"): better against worse translations.

Each row has a source, a translation to prefer and one to avoid, which may itself be good. The loss is that of
`core.training.preference.cpo`; this file knows how rows look.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from apps.translation import prompts
from apps.translation.data import TranslationExample
from core.config.limits import CPO
from core.config.registry import method
from core.config.schema import key
from core.data.segments import render
from core.errors import DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class CpoConfig:
    """Options of `translation.cpo`; the paper's values are the defaults."""

    template: str = key("alma", "prompt template", one_of=prompts.TEMPLATES)
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    beta: float = key(0.1, "temperature of the comparison", above=0)
    nll: float = key(1.0, "weight of the likelihood of the better translation", least=0)


@method("translation.cpo", config=CpoConfig, limits=CPO)
def cpo(ctx: StageContext) -> Stage:
    """Pairs of translations behind one prompt."""
    from core.training.preference.cpo import CpoTrainer
    from core.training.preference.pairs import Pair, encode_pairs
    from core.training.stage import Stage

    template = prompts.get_template(ctx.options.template)

    def pairs(examples: Iterable[TranslationExample]) -> list[Any]:
        rows = []
        for number, example in enumerate(examples, 1):
            if not example.tgt or not example.rejected:
                name = "tgt" if not example.tgt else "rejected"
                raise DataError(
                    f"row {number}: translation.cpo needs a better and a worse translation",
                    field=name,
                    got=example.src,
                    hint='use the reader "triplets"; each row has src, chosen and rejected',
                )
            worse = replace(example, tgt=example.rejected)
            rows.append(Pair(*(render(template, prompts.fields(e)) for e in (example, worse))))
        return rows

    held_out = [example for example in ctx.eval or () if example.tgt and example.rejected]
    return Stage(
        rows=pairs(ctx.train),
        eval_rows=pairs(held_out),
        mode=ctx.options.mode,
        encoder=encode_pairs,
        trainer=CpoTrainer,
        trainer_options={
            "tokenizer": ctx.tokenizer,
            "options": {
                "beta": ctx.options.beta,
                "cpo_alpha": ctx.options.nll,
                "max_length": ctx.recipe.data.max_length,
            },
        },
    )
