"""`chat.grpo`: answers drawn while training and rewarded by Python functions (Shao et al. 2024, DeepSeekMath)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from apps.chat import prompts
from apps.chat.methods.sft import with_system
from core.config.limits import GRPO
from core.config.registry import method
from core.config.schema import key
from core.data.reading import required
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class GrpoOptions:
    """Options of `chat.grpo`."""

    template: prompts.Template = key("auto", "chat template; auto is the model's own where it has one, else plain")
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    system: str | None = key(None, "system text of conversations that have none")
    rewards: list[str] = key(
        ["apps.chat.arithmetic:is_right"], '"module:function" or "file.py:function", each f(answer, example) -> float'
    )
    group: int = key(8, "answers drawn for a prompt", least=2)
    max_new_tokens: int = key(256, "tokens of an answer at most", least=1)
    temperature: float = key(1.0, "of the draws", above=0)
    beta: float = key(0.0, "weight of the divergence from the model at the start", least=0)


def look(examples: Sequence[Any], recipe: Any, options: GrpoOptions) -> None:
    """Raises where a step is no whole groups, or a reward's file or module is not there; none is run."""
    batch = recipe.train.batch
    if batch.unit != "rows" or batch.size % options.group:
        raise ConfigError(
            f"a step's {batch.size} {batch.unit} are no whole groups of {options.group} answers",
            where="train.batch",
            hint=f"unit: rows, and a size that {options.group} divides",
        )
    for name in options.rewards:
        place, _, attribute = name.rpartition(":")
        if not place or not attribute:
            raise ConfigError(f"'{name}' names no function", where="with.rewards", hint='as "rewards.py:length"')
        if place.endswith(".py"):
            required(place)
        elif not _there(place):
            raise ConfigError(f"there is no module '{place}'", where=f"with.rewards: {name}", hint="or name a file, "
                              'as "rewards.py:length"')  # fmt: skip


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@method("chat.grpo", config=GrpoOptions, limits=GRPO, look=look)
def grpo(ctx: StageContext) -> Stage:
    """Prompts; a step is `train.batch.size` answers, `group` for each prompt."""
    from core.training.preference.grpo import GrpoTrainer, encode_prompts, find_reward
    from core.training.stage import Stage

    options = ctx.options
    look(ctx.train, ctx.recipe, options)
    for name in options.rewards:
        find_reward(name)
    rows = [
        prompts.segments(with_system(example, options.system), ctx.tokenizer, options.template) for example in ctx.train
    ]
    return Stage(
        rows=rows,
        mode=options.mode,
        encoder=partial(encode_prompts, examples=ctx.train, group=options.group),
        trainer=GrpoTrainer,
        trainer_options={
            "tokenizer": ctx.tokenizer,
            "rewards": options.rewards,
            "options": {
                "num_generations": options.group,
                "max_completion_length": options.max_new_tokens,
                "temperature": options.temperature,
                "beta": options.beta,
            },
        },
    )
