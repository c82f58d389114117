"""What a training method is given, and what it gives back.

A method turns examples into rows of segments and says how they are laid out; encoding, packing, optimisation and
evaluation are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.config.registry import App
from core.config.schema import Recipe
from core.data.segments import Segment


@dataclass
class StageContext:
    """Everything a method may look at: the stage's recipe, its own typed options, and the examples."""

    recipe: Recipe
    options: Any
    tokenizer: Any
    train: Sequence[Any]
    eval: Sequence[Any]
    app: App
    run: Any = None


@dataclass
class Stage:
    """Rows to train on.

    Args:
        rows, eval_rows: one list of segments a row.
        layout: "rows" keeps rows whole (and packs them); "blocks" joins them into a stream that is cut into blocks.
        mode: how segments become ids, as in `core.data.encode`.
        trainer: another Trainer class. callbacks: added to the trainer's.
    """

    rows: Sequence[list[Segment]] | Iterable[list[Segment]]
    eval_rows: Sequence[list[Segment]] | Iterable[list[Segment]] = ()
    layout: Literal["rows", "blocks"] = "rows"
    mode: Literal["offsets", "pieces"] = "offsets"
    trainer: type | None = None
    callbacks: list[Any] = field(default_factory=list)
