"""Which model answers how often in each stage of a pipeline, under a budget (AgentTTS: Wang et al. 2025).

A `TaskGraph` has stages in order; an `Allocation` gives each stage a model and a number of samples. An environment says
how well an allocation does on a small training set and what it costs; an agent proposes allocations from the archive of
what was tried; the best one is scored once on the test set. Nothing here knows how answers are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.errors import ConfigError
from core.inference.search.budget import Spending


@dataclass(frozen=True)
class Stage:
    """A subtask: its name, the models that can do it, and the numbers of samples to choose from, ascending."""

    name: str
    models: tuple[str, ...]
    samples: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        if not self.models or not self.samples or list(self.samples) != sorted(set(self.samples)):
            raise ConfigError(f"stage '{self.name}' needs models and ascending numbers of samples", where="Stage")


@dataclass(frozen=True)
class TaskGraph:
    """Stages, each fed by the ones before it."""

    stages: tuple[Stage, ...]

    @property
    def size(self) -> int:
        """The number of allocations."""
        size = 1
        for stage in self.stages:
            size *= len(stage.models) * len(stage.samples)
        return size

    def check(self, allocation: Allocation) -> None:
        """Raise `ConfigError` for an allocation that is not in the search space, naming the stage."""
        if len(allocation.choices) != len(self.stages):
            raise ConfigError(f"{len(allocation.choices)} choices for {len(self.stages)} stages", where="Allocation")
        for stage, (model, n) in zip(self.stages, allocation.choices):
            if model not in stage.models or n not in stage.samples:
                raise ConfigError(f"stage '{stage.name}' has no choice ({model}, {n})", where="Allocation",
                                  hint=f"models: {', '.join(stage.models)}; samples: {stage.samples}")  # fmt: skip


@dataclass(frozen=True)
class Allocation:
    """A model and a number of samples for each stage, in order."""

    choices: tuple[tuple[str, int], ...]

    def replaced(self, stage: int, model: str | None = None, n: int | None = None) -> Allocation:
        """The same with another choice in one stage."""
        old = self.choices[stage]
        new = (old[0] if model is None else model, old[1] if n is None else n)
        return Allocation((*self.choices[:stage], new, *self.choices[stage + 1 :]))


@dataclass(frozen=True)
class Tried:
    """An allocation with its score in [0, 1] and its cost for the examples it was tried on."""

    allocation: Allocation
    score: float
    cost: float


@dataclass
class Archive:
    """Everything that was tried, in order."""

    tried: list[Tried] = field(default_factory=list)

    def find(self, allocation: Allocation) -> Tried | None:
        return next((t for t in self.tried if t.allocation == allocation), None)

    @property
    def best(self) -> Tried | None:
        """The highest score; the cheapest of equals."""
        return max(self.tried, key=lambda t: (t.score, -t.cost), default=None)


class Environment(Protocol):
    """Tries allocations. `cost` says before trying what it will cost."""

    graph: TaskGraph

    def cost(self, allocation: Allocation) -> float: ...

    def evaluate(self, allocation: Allocation) -> float: ...


class Agent(Protocol):
    """Proposes what to try next; an empty list gives up."""

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Any) -> Sequence[Allocation]: ...


@dataclass(frozen=True)
class SearchResult:
    """The best allocation on the training set, its test score (once), and the archive with what it cost."""

    best: Tried | None
    test: float | None
    archive: Archive
    spent: float
    stopped: str


def search(
    environment: Environment,
    agent: Agent,
    *,
    budget: float | None = None,
    run_budget: float | None = None,
    trials: int = 100,
    test: Environment | None = None,
) -> SearchResult:
    """Try what `agent` proposes until it gives up, `trials` are done or `budget` is spent.

    Args:
        budget: of all trials together. run_budget: the most one allocation may cost, at which the answer will be used.
        test: scores the best allocation, once.

    Raises:
        ConfigError: the agent proposes something outside of the space.
    """
    spending, archive = Spending(float("inf") if budget is None else budget), Archive()
    most = float("inf") if run_budget is None else run_budget
    stopped = "all trials done"

    def affordable(allocation: Allocation) -> bool:
        cost = environment.cost(allocation)
        return cost <= most and spending.affords(cost)

    while len(archive.tried) < trials:
        proposals = [a for a in agent.propose(environment.graph, archive, affordable) if archive.find(a) is None]
        if not proposals:
            stopped = "the agent gave up"
            break
        fresh = False
        for allocation in proposals:
            environment.graph.check(allocation)
            if len(archive.tried) >= trials or not affordable(allocation):
                continue
            cost = environment.cost(allocation)
            spending.pay(cost, str(allocation.choices))
            archive.tried.append(Tried(allocation, environment.evaluate(allocation), cost))
            fresh = True
        if not fresh:
            stopped = "nothing more is affordable"
            break
    best = archive.best
    score = test.evaluate(best.allocation) if test is not None and best is not None else None
    return SearchResult(best, score, archive, spending.spent, stopped)


class ReplayEnvironment:
    """An environment over a table of outcomes: whether sample i of a model solves an example in a stage.

    An example is solved when in every stage at least one of the first n samples is good; `noise` lets many samples hurt
    a stage, as a chooser that can be misled does: the chance to pick a good one falls with the share of bad ones.

    Args:
        outcomes: (stage, model) → rows of booleans, one row an example, one column a sample.
        prices: (stage, model) → cost of one sample.
    """

    def __init__(
        self,
        graph: TaskGraph,
        outcomes: Mapping[tuple[str, str], Sequence[Sequence[float]]],
        prices: Mapping[tuple[str, str], float],
        noise: Mapping[str, float] | None = None,
        coupling: float = 0.0,
    ) -> None:
        self.graph, self.outcomes, self.prices = graph, outcomes, prices
        self.noise, self.coupling = dict(noise or {}), coupling
        self._known: dict[Allocation, float] = {}

    def cost(self, allocation: Allocation) -> float:
        return sum(self.prices[s.name, m] * n for s, (m, n) in zip(self.graph.stages, allocation.choices))

    def evaluate(self, allocation: Allocation) -> float:
        """Mean chance, over the examples, that every stage succeeds."""
        if allocation not in self._known:
            self._known[allocation] = self._mean(allocation)
        return self._known[allocation]

    def _mean(self, allocation: Allocation) -> float:
        import numpy as np

        chance = None
        for stage, (model, n) in zip(self.graph.stages, allocation.choices):
            good = np.asarray(self.outcomes[stage.name, model], dtype=float)[:, :n]
            share, solved = good.mean(1), good.max(1)
            noise = self.noise.get(stage.name, 0.0)
            here = solved * (1 - noise * (1 - share) * (1 - 1 / n))
            # what came before makes the stage easier or harder
            chance = here if chance is None else chance * (1 - self.coupling + self.coupling * chance) * here
        assert chance is not None
        return float(chance.mean())
