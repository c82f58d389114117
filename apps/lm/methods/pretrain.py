"""`lm.pretrain`: documents, each with its end of text, joined and cut into blocks in which every token is learnt."""

from __future__ import annotations

from typing import Any

from core.config.registry import method
from core.data.segments import Segment


@method("lm.pretrain")
def pretrain(ctx: Any) -> Any:
    """Next-token prediction on plain text."""
    from core.training.stage import Stage

    def rows(examples: Any) -> list[list[Segment]]:
        return [[Segment(example.text, "document", True)] for example in examples]

    return Stage(rows=rows(ctx.train), eval_rows=rows(ctx.eval), layout="blocks")
