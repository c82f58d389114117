"""The grid of few-shot prompting against QLoRA as one recipe: `qa.sft`, and then every arm on the held-out questions.

The model as it was is the same model with its adapter switched off. Arms go to eval/grid.json of the run.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.qa.data import TYPES, QaExample
from apps.qa.grid import CONTEXTS
from apps.qa.methods.sft import SftConfig, sft
from core.config.registry import method
from core.config.schema import key
from core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class GridConfig(SftConfig):
    """Options of `qa.grid`."""

    shots: list[int] = key([0, 1, 10], "answered questions before the one asked")
    contexts: list[str] = key(["none", "own", "found"], "what is read: " + ", ".join(CONTEXTS))
    encyclopedia: str | None = key(None, "file of articles, one a line, for the context more")
    shot_chars: int = key(200, "characters of passages of a shot", least=0)
    types: list[str] = key(["yesno"], "types of questions that the arms answer: " + ", ".join(TYPES))
    limit: int | None = key(None, "held-out questions that the arms answer", least=1)


@method("qa.grid", config=GridConfig)
def grid(ctx: StageContext) -> Stage:
    """`qa.sft`, with the grid at its end."""
    from apps.qa.grid import encyclopedia

    test = [example for example in ctx.eval if example.type in ctx.options.types][: ctx.options.limit]
    if not test:
        raise DataError("the grid needs held-out questions", field="data.eval", got=ctx.options.types)
    if not ctx.recipe.model.adapters:
        raise ConfigError("the grid compares a base with its adapter", where="model.adapters", hint="add a LoRA")
    more = encyclopedia(ctx.options.encyclopedia) if ctx.options.encyclopedia else []
    stage = sft(ctx)
    stage.callbacks.append(_callback(ctx, test, more))
    return stage


def _callback(ctx: StageContext, test: list[QaExample], more: list[str]) -> Any:
    from transformers import TrainerCallback

    from apps.qa.grid import answer_grid, as_row, table
    from apps.qa.pipeline import QaPipeline
    from core.config.files import write_json
    from core.training.callbacks import say

    options = ctx.options

    class Grid(TrainerCallback):
        """Answers at the end of training."""

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if ctx.run is None or not state.is_world_process_zero or state.global_step < state.max_steps:
                return
            names = ("context_chars", "shot_chars", "answers")
            texts = {name: getattr(options, name) for name in names}
            ask, rows = QaPipeline.from_model(model, ctx.tokenizer, **texts), []
            training = model.training
            model.eval()
            for who in ("base", "tuned"):
                with model.disable_adapter() if who == "base" else nullcontext():
                    arms = answer_grid(ask, test, ctx.train, shots=options.shots, contexts=options.contexts, more=more)
                    rows += [as_row(who, *arm) for arm in arms]
            model.train(training)
            write_json(ctx.run.path / "eval" / "grid.json", rows)
            say(ctx.run, table(rows))

    return Grid()
