"""Group-relative policy optimisation (Shao et al. 2024) on TRL's trainer, with rewards that are Python functions.

A reward is `f(answer: str, example) -> float`, named in a recipe as "package.module:function" or "file.py:function".
For every prompt a group of answers is drawn; an answer's advantage is its reward against the group's mean.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from core.data.encode import EncodeStats, encode_prompt
from core.data.segments import Segment
from core.errors import ConfigError, DataError
from core.training.preference.frame import Frame

Reward = Callable[[str, Any], float]


class PromptDataset(Sequence):
    """Prompts with the example that each came from. Its length counts answers, as a step does."""

    bins = None
    padding_share = 0.0

    def __init__(self, ids: Sequence[list[int]], texts: Sequence[str], examples: Sequence[Any], group: int) -> None:
        self.ids, self.texts, self.examples, self.group = list(ids), list(texts), list(examples), group

    def __len__(self) -> int:
        return len(self.ids) * self.group

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"prompt": self.texts[index // self.group], "number": index // self.group}

    def to_datasets(self) -> Any:
        from datasets import Dataset

        return Dataset.from_list([{"prompt": t, "number": i} for i, t in enumerate(self.texts)])


def encode_prompts(
    rows: Sequence[Sequence[Segment]],
    tokenizer: Any,
    *,
    examples: Sequence[Any],
    group: int,
    mode: str = "offsets",
    max_length: int | None = None,
) -> tuple[PromptDataset, EncodeStats]:
    """Prompts as ids; one that leaves no room for an answer is dropped and counted."""
    stats, kept = EncodeStats(), []
    for number, (segments, example) in enumerate(zip(rows, examples, strict=True)):
        ids = encode_prompt(segments, tokenizer, mode)  # type: ignore[arg-type]
        stats.rows += 1
        if max_length is not None and len(ids) >= max_length:
            stats.dropped += 1
            stats.worst[:] = [*stats.worst, number][:10]
            continue
        stats.tokens += len(ids) * group
        kept.append((ids, "".join(s.text for s in segments if not s.train), example))
    if not kept:
        raise DataError("no prompt is shorter than data.max_length")
    ids_of, texts, found = (list(column) for column in zip(*kept))
    return PromptDataset(ids_of, texts, found, group), stats


def find_reward(name: str) -> Reward:
    """The function that "module:function" or "file.py:function" names. Raises `ConfigError` when there is none."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"'{name}' names no function", where="with.rewards", hint='as "rewards.py:length"')
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except (OSError, ImportError) as error:
        raise ConfigError(f"the reward's module cannot be loaded: {error}", where=f"with.rewards: {name}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigError(f"'{place}' has no function '{attribute}'", where=f"with.rewards: {name}")
    return found


def as_trl(reward: Reward, name: str, examples: Sequence[Any]) -> Callable[..., list[float]]:
    """A reward as TRL calls it: whole batches, with the rows' columns as keywords."""

    def scored(prompts: list[str], completions: list[str], number: list[int], **rest: Any) -> list[float]:
        values = [reward(text, examples[i]) for text, i in zip(completions, number)]
        for value in values:
            if not isinstance(value, (int, float)) or value != value:
                raise DataError("a reward is a number", field=name, got=value, expected="a float")
        return [float(value) for value in values]

    scored.__name__ = name.rpartition(":")[2]
    return scored


class GrpoTrainer(Frame, GRPOTrainer):
    """TRL's trainer on prompts that are ids already."""

    config_cls = GRPOConfig
    shown = ("reward",)

    def __init__(self, *, train_dataset: PromptDataset, rewards: Sequence[str], **rest: Any) -> None:
        self.ids_of = dict(zip(train_dataset.texts, train_dataset.ids))
        functions = [as_trl(find_reward(name), name, train_dataset.examples) for name in rewards]
        super().__init__(train_dataset=train_dataset, reward_funcs=functions, **{**rest, "eval_dataset": None})

    @property
    def useful_tokens(self) -> int:
        """Tokens of prompts and answers of this process so far."""
        return int(self.state.num_input_tokens_seen) // self.accelerator.num_processes

    @useful_tokens.setter
    def useful_tokens(self, count: int) -> None:
        """The count is TRL's own; there is nothing to set."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return GRPOTrainer._get_train_sampler(self, dataset)

    def _tokenize_prompts(self, prompts: list) -> Any:
        return [self.ids_of[prompt] for prompt in prompts], None, {}

    def held_out(self, dataset: Any) -> dict[str, float]:
        return {}
