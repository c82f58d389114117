"""What a training method is given, and what it gives back.

A method turns examples into rows of segments and says how they are laid out; encoding, packing, optimisation and
evaluation are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.config.registry import App
from core.config.schema import Recipe
from core.data.encode import EncodeStats
from core.data.rows import BadRows


@dataclass
class StageContext:
    """Everything a method may look at: the stage's recipe, typed options and folder, and the examples."""

    recipe: Recipe
    options: Any
    tokenizer: Any
    train: Sequence[Any]
    eval: Sequence[Any]
    app: App
    run: Any = None
    folder: Path | None = None


def bad_rows_of(recipe: Recipe, run: Any) -> BadRows:
    """What becomes of a run's bad rows, as `data.on_bad` says; the first process notes them."""
    from core.distributed.launch import is_main

    return BadRows(recipe.data.on_bad, run.rejects if run and is_main() else None)


@dataclass
class Stage:
    """Rows to train on.

    Args:
        rows, eval_rows: one list of segments a row, or what `encoder` takes.
        layout: "rows" keeps rows whole (and packs them); "blocks" joins them into a stream that is cut into blocks.
        mode: how segments become ids, as in `core.data.encode`.
        encoder: (rows, tokenizer, mode=, max_length=) -> (dataset, EncodeStats), for rows that are no segments.
        trainer: another Trainer class. trainer_options: more arguments of it. callbacks: added to the trainer's.
    """

    rows: Sequence[Any] | Iterable[Any]
    eval_rows: Sequence[Any] | Iterable[Any] = ()
    layout: Literal["rows", "blocks"] = "rows"
    mode: Literal["offsets", "pieces"] = "offsets"
    encoder: Callable[..., tuple[Any, EncodeStats]] | None = None
    trainer: type | None = None
    trainer_options: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Any] = field(default_factory=list)
