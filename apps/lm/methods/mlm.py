"""`lm.mlm`: texts one by one, a share of whose tokens is hidden and to be told (Devlin et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.config.limits import MASKED
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment


@dataclass(frozen=True)
class Masked:
    """Options of `lm.mlm`."""

    share: float = key(0.15, "tokens of a step that are chosen", above=0, most=0.9)


@method("lm.mlm", config=Masked, tiny="tiny-bert", limits=MASKED)
def mlm(ctx: Any) -> Any:
    """Fill in hidden tokens: encoders, and adapters on them."""
    from core.training.masked import masked_trainer
    from core.training.stage import Stage

    rows = [[Segment(example.text, "document", True)] for example in ctx.train]
    return Stage(rows=rows, trainer=masked_trainer(ctx.tokenizer, ctx.options.share))
