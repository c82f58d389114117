"""Agents that propose allocations: by rules, by a language model, and the baselines that they must beat.

The rules are what AgentTTS's agents learn (Wang et al. 2025): subtasks prefer different models, so each is tried in
each stage at few samples first; more samples saturate or hurt, so their number is doubled until it no longer helps and
then bisected; and what an early stage does changes the best of the later ones, which are then looked at again.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.errors import ConfigError
from core.inference.search.multi_stage import Allocation, Archive, TaskGraph

Affordable = Callable[[Allocation], bool]


class RuleAgent:
    """The three rules, without a model. One agent serves one search.

    Args:
        probe: samples at which models are compared. passes: how often all stages are gone through.
        gain: least rise of the score that counts as one.
    """

    def __init__(self, probe: int = 4, passes: int = 2, gain: float = 1e-4) -> None:
        self.probe, self.passes, self.gain = probe, passes, gain
        self._plan: Iterator[Allocation] | None = None
        self._archive: Archive | None = None

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Sequence[Allocation]:
        """The next allocation that is new and affordable."""
        if self._plan is None:
            self._archive = archive
            self._plan = self._steps(graph, archive, affordable)
        for allocation in self._plan:
            if archive.find(allocation) is None and affordable(allocation):
                return [allocation]
        return []

    def _steps(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Iterator[Allocation]:
        start = [self._near(stage.samples, self.probe) for stage in graph.stages]
        current = self._affordable_start(graph, start, affordable)
        if current is None:
            return
        yield current
        for index, stage in enumerate(graph.stages):
            best = self._score(archive, current)
            for model in stage.models:
                other = current.replaced(index, model)
                yield other
                if self._score(archive, other) > best + self.gain:
                    best, current = self._score(archive, other), other
        for _ in range(self.passes):
            before = current
            for index in range(len(graph.stages)):
                yield from self._samples(graph, index, current, archive)
                current = self._winner(archive, current)
            for index, stage in enumerate(graph.stages):
                for model in stage.models:
                    yield current.replaced(index, model)
                current = self._winner(archive, current)
            if current == before:
                break
        while True:
            before = self._winner(archive, current)
            for first, second in itertools.permutations(range(len(graph.stages)), 2):
                yield from self._trades(graph, before, first, second)
                if self._winner(archive, current) != before:
                    break
            if self._winner(archive, current) == before:
                break
        yield from self._restarts(graph, archive)

    def _trades(self, graph: TaskGraph, at: Allocation, first: int, second: int) -> Iterator[Allocation]:
        """What one stage gives up, another gets: another choice in two stages at once."""
        for one in _choices(graph, at, first):
            yield from _choices(graph, one, second)

    def _restarts(self, graph: TaskGraph, archive: Archive) -> Iterator[Allocation]:
        """Where nothing near is better: neighbours of the next best trials."""
        seen: set[Allocation] = set()
        while True:
            rest = [t for t in archive.tried if t.allocation not in seen]
            if not rest:
                return
            at = max(rest, key=lambda t: t.score).allocation
            seen.add(at)
            yield from _neighbours(graph, at)

    def _samples(self, graph: TaskGraph, index: int, current: Allocation, archive: Archive) -> Iterator[Allocation]:
        """The number of samples of one stage: doubled while it helps, halved while it does not hurt, then between."""
        options = graph.stages[index].samples
        at = options.index(current.choices[index][1])
        for direction in (1, -1):
            best, place, step = self._score(archive, current), at, 1
            while 0 <= place + direction * step < len(options):
                other = current.replaced(index, n=options[place + direction * step])
                yield other
                score = self._score(archive, other)
                if score <= best + self.gain:
                    if step == 1:
                        break
                    step = 1
                    continue
                best, place = score, place + direction * step
                step *= 2
            if place != at:
                return

    @staticmethod
    def _near(options: Sequence[int], wanted: int) -> int:
        return min(options, key=lambda n: abs(n - wanted))

    def _affordable_start(self, graph: TaskGraph, start: list[int], affordable: Affordable) -> Allocation | None:
        for shrink in range(max(len(s.samples) for s in graph.stages)):
            samples = [s.samples[max(0, s.samples.index(n) - shrink)] for s, n in zip(graph.stages, start)]
            for models in itertools.product(*(s.models for s in graph.stages)):
                found = Allocation(tuple(zip(models, samples)))
                if affordable(found):
                    return found
        return None

    @staticmethod
    def _score(archive: Archive, allocation: Allocation) -> float:
        found = archive.find(allocation)
        return -1.0 if found is None else found.score

    @staticmethod
    def _winner(archive: Archive, current: Allocation) -> Allocation:
        return current if archive.best is None else archive.best.allocation


class LLMAgent:
    """A language model proposes, from the archive in its prompt; what it says is checked against the space.

    Args:
        ask: prompt → text. batch: proposals asked for at a time. fallback: proposes when the model says nothing usable.
    """

    def __init__(self, ask: Callable[[str], str], batch: int = 4, fallback: Any = None) -> None:
        self.ask, self.batch, self.fallback, self.rejected = ask, batch, fallback or RuleAgent(), 0

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Sequence[Allocation]:
        """What the model says, without what is unknown, repeated or too dear."""
        text = self.ask(self.prompt(graph, archive))
        found = []
        for allocation in self._read(text):
            try:
                graph.check(allocation)
            except ConfigError:
                self.rejected += 1
                continue
            if archive.find(allocation) is None and affordable(allocation) and allocation not in found:
                found.append(allocation)
        return found[: self.batch] or self.fallback.propose(graph, archive, affordable)

    def prompt(self, graph: TaskGraph, archive: Archive) -> str:
        """The space, the rules of thumb, and the best and latest trials."""
        lines = [
            "Choose a model and a number of samples for each stage, to raise the score within the budget.",
            "Stages prefer different models; more samples saturate or hurt; earlier stages change later ones.",
        ]
        lines += [f"Stage {s.name}: models {', '.join(s.models)}; samples {list(s.samples)}" for s in graph.stages]
        best = sorted(archive.tried, key=lambda t: -t.score)[:8]
        for tried in dict.fromkeys([*best, *archive.tried[-4:]]):
            lines.append(f"{json.dumps(tried.allocation.choices)} score {tried.score:.4f} cost {tried.cost:.4g}")
        lines.append(f"Answer with a JSON list of at most {self.batch} lists of [model, samples], one for each stage.")
        return "\n".join(lines)

    @staticmethod
    def _read(text: str) -> list[Allocation]:
        start, end = text.find("["), text.rfind("]")
        try:
            rows = json.loads(text[start : end + 1])
            return [Allocation(tuple((str(m), int(n)) for m, n in row)) for row in rows]
        except (ValueError, TypeError):
            return []


class RandomAgent:
    """Proposes anything affordable; seeds repeat."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = random.Random(seed)

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Sequence[Allocation]:
        for _ in range(400):
            choices = tuple((self.draw.choice(s.models), self.draw.choice(s.samples)) for s in graph.stages)
            if archive.find(Allocation(choices)) is None and affordable(Allocation(choices)):
                return [Allocation(choices)]
        return []


class GridAgent:
    """Proposes the whole space in order, cheapest numbers of samples first."""

    def __init__(self) -> None:
        self._rest: Iterator[Allocation] | None = None

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Sequence[Allocation]:
        if self._rest is None:
            parts = [[(m, n) for n in s.samples for m in s.models] for s in graph.stages]
            self._rest = (Allocation(c) for c in itertools.product(*parts))
        return list(itertools.islice((a for a in self._rest if affordable(a)), 1))


class HillClimbAgent:
    """From a random start, always to a better neighbour; a new start at a summit."""

    def __init__(self, seed: int = 0) -> None:
        self.draw, self._random = random.Random(seed), RandomAgent(seed + 1)
        self._at: Allocation | None = None

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Sequence[Allocation]:
        latest = archive.tried[-1] if archive.tried else None
        here = None if self._at is None else archive.find(self._at)
        if latest is not None and (here is None or latest.score > here.score):
            self._at = latest.allocation
        if self._at is not None:
            near = [a for a in _neighbours(graph, self._at) if archive.find(a) is None and affordable(a)]
            if near:
                return [self.draw.choice(near)]
            self._at = None
        return self._random.propose(graph, archive, affordable)


def _choices(graph: TaskGraph, at: Allocation, index: int) -> Iterator[Allocation]:
    """Other choices of one stage: another model, or the next number of samples, or both."""
    stage = graph.stages[index]
    model, n = at.choices[index]
    place = stage.samples.index(n)
    for other in stage.models:
        for i in (place - 1, place, place + 1):
            if 0 <= i < len(stage.samples) and (other, stage.samples[i]) != (model, n):
                yield at.replaced(index, other, stage.samples[i])


def _neighbours(graph: TaskGraph, at: Allocation) -> Iterator[Allocation]:
    for index, stage in enumerate(graph.stages):
        model, n = at.choices[index]
        yield from (at.replaced(index, other) for other in stage.models if other != model)
        place = stage.samples.index(n)
        yield from (
            at.replaced(index, n=stage.samples[i]) for i in (place - 1, place + 1) if 0 <= i < len(stage.samples)
        )


class TpeAgent:
    """A tree-structured Parzen estimator over the choices (Bergstra et al. 2011), stages independent of each other.

    Args:
        start: random trials before it models anything. good: share of the best trials. candidates: drawn a proposal.
    """

    def __init__(self, seed: int = 0, start: int = 10, good: float = 0.25, candidates: int = 24) -> None:
        self.draw, self._random = random.Random(seed), RandomAgent(seed + 1)
        self.start, self.good, self.candidates = start, good, candidates

    def propose(self, graph: TaskGraph, archive: Archive, affordable: Affordable) -> Sequence[Allocation]:
        if len(archive.tried) < self.start:
            return self._random.propose(graph, archive, affordable)
        ordered = sorted(archive.tried, key=lambda t: -t.score)
        cut = max(1, int(self.good * len(ordered)))
        good, bad = ordered[:cut], ordered[cut:]
        tables = [
            (
                self._table(s, i, 0, good),
                self._table(s, i, 0, bad),
                self._table(s, i, 1, good),
                self._table(s, i, 1, bad),
            )
            for i, s in enumerate(graph.stages)
        ]
        best: Allocation | None = None
        best_ratio = -1.0
        for _ in range(self.candidates):
            choices, ratio = [], 1.0
            for models_good, models_bad, samples_good, samples_bad in tables:
                model, n = self._pick(models_good), self._pick(samples_good)
                ratio *= models_good[model] / models_bad[model] * samples_good[n] / samples_bad[n]
                choices.append((model, n))
            found = Allocation(tuple(choices))
            if ratio > best_ratio and archive.find(found) is None and affordable(found):
                best, best_ratio = found, ratio
        return [best] if best is not None else self._random.propose(graph, archive, affordable)

    @staticmethod
    def _table(stage: Any, index: int, part: int, tried: Sequence[Any]) -> dict[Any, float]:
        options = stage.models if part == 0 else stage.samples
        counts = {option: 1.0 for option in options}
        for one in tried:
            counts[one.allocation.choices[index][part]] += 1
        total = sum(counts.values())
        return {option: count / total for option, count in counts.items()}

    def _pick(self, table: dict[Any, float]) -> Any:
        return self.draw.choices(list(table), list(table.values()))[0]
