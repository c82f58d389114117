"""A world of recorded outcomes for the search over allocations: three stages, four models each, 13,824 allocations."""

from __future__ import annotations

import itertools

import numpy as np

from core.inference.search.multi_stage import Allocation, ReplayEnvironment, Stage, TaskGraph

SAMPLES = (1, 2, 4, 8, 16, 32)
MODELS = ("3b", "8b", "14b", "70b")
PRICES = {"3b": 3.0, "8b": 8.0, "14b": 14.0, "70b": 70.0}


def world(seed: int, examples: int = 50) -> ReplayEnvironment:
    """Outcomes drawn once: models differ by stage, examples by difficulty, and in some stages many samples mislead."""
    draw = np.random.default_rng(seed)
    stages = tuple(Stage(name, MODELS, SAMPLES) for name in ("plan", "write", "check"))
    difficulty = draw.normal(0, 1, examples)
    outcomes, prices = {}, {}
    for stage in stages:
        skill = np.sort(draw.normal(0, 0.8, len(MODELS))) + 0.3
        if draw.random() < 0.5:  # in half of the stages a small model is as good as the largest
            skill = draw.permutation(skill)
        for model, level in zip(MODELS, skill):
            chance = 1 / (1 + np.exp(-1.7 * (level - difficulty)))
            outcomes[stage.name, model] = (draw.random((examples, SAMPLES[-1])) < chance[:, None]).astype(float)
            prices[stage.name, model] = PRICES[model]
    noise = {stage.name: float(draw.choice([0.0, 0.3, 0.6])) for stage in stages}
    return ReplayEnvironment(TaskGraph(stages), outcomes, prices, noise, coupling=0.3)


def optimum(environment: ReplayEnvironment, run_budget: float) -> float:
    """The best score among all allocations within the budget, by trying all."""
    parts = [[(m, n) for m in s.models for n in s.samples] for s in environment.graph.stages]
    found = (Allocation(choices) for choices in itertools.product(*parts))
    return max(environment.evaluate(a) for a in found if environment.cost(a) <= run_budget)
