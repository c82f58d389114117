"""An environment that really runs models: samples are drawn when an allocation first needs them, and kept.

    environment = LiveEnvironment(graph, draw, fuse, score, examples, prices)
    search(environment, RuleAgent(), run_budget=…)

Of two allocations that agree in their first stages the second one draws nothing there; more samples of a stage are
added to those that are there. So a search costs what its most generous allocations draw, not their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import ConfigError
from core.inference.search.multi_stage import Allocation, TaskGraph

Draw = Callable[[Any, str, int, int], Sequence[str]]
"""(example, what the stage before handed on, number of the first sample, how many) → texts; the numbers seed it."""
Fuse = Callable[[Any, str, Sequence[str]], str]
"""(example, what the stage before handed on, the samples) → what this stage hands on."""
Score = Callable[[Any, str], float]
"""(example, what the last stage handed on) → score in [0, 1]."""


class LiveEnvironment:
    """Mean score of the examples under an allocation.

    Args:
        draw: (stage, model) → how it answers. fuse: stage → how its samples become one. score: of the end result.
        prices: (stage, model) → cost of one sample of one example.

    Raises:
        ConfigError: a stage or model that nothing is given for.
    """

    def __init__(
        self,
        graph: TaskGraph,
        draw: Mapping[tuple[str, str], Draw],
        fuse: Mapping[str, Fuse],
        score: Score,
        examples: Sequence[Any],
        prices: Mapping[tuple[str, str], float],
    ) -> None:
        for stage in graph.stages:
            for model in stage.models:
                if (stage.name, model) not in draw or (stage.name, model) not in prices:
                    raise ConfigError(
                        f"stage '{stage.name}' has no way or no price for '{model}'", where="draw, prices"
                    )
            if stage.name not in fuse:
                raise ConfigError(f"stage '{stage.name}' has no way to fuse its samples", where="fuse")
        if not examples:
            raise ConfigError("no examples to try allocations on", where="examples")
        self.graph, self.draw, self.fuse, self.score = graph, draw, fuse, score
        self.examples, self.prices = list(examples), prices
        self.drawn = 0
        self._samples: dict[tuple[int, str, str, str], list[str]] = {}
        self._scores: dict[tuple[int, str], float] = {}

    def cost(self, allocation: Allocation) -> float:
        """What the allocation costs where nothing is known yet: its price in use."""
        each = sum(self.prices[s.name, m] * n for s, (m, n) in zip(self.graph.stages, allocation.choices))
        return each * len(self.examples)

    def evaluate(self, allocation: Allocation) -> float:
        """Mean score over the examples."""
        return sum(self._one(number, allocation) for number in range(len(self.examples))) / len(self.examples)

    def _one(self, number: int, allocation: Allocation) -> float:
        example, handed = self.examples[number], ""
        for stage, (model, n) in zip(self.graph.stages, allocation.choices):
            known = self._samples.setdefault((number, stage.name, model, handed), [])
            if len(known) < n:
                self.drawn += n - len(known)
                known += self.draw[stage.name, model](example, handed, len(known), n - len(known))
            handed = self.fuse[stage.name](example, handed, known[:n])
        if (number, handed) not in self._scores:
            self._scores[number, handed] = self.score(example, handed)
        return self._scores[number, handed]
