"""Sampling, beams and the search over allocations."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from core.errors import BudgetExceeded, ConfigError
from core.evaluation.passk import pass_at_k
from core.inference.refine import Completions, Verdict
from core.inference.search import (
    Allocation,
    Archive,
    CallCost,
    GridAgent,
    HillClimbAgent,
    LLMAgent,
    RandomAgent,
    RuleAgent,
    Spending,
    Stage,
    TaskGraph,
    TpeAgent,
    beam_search,
    best_of_n,
    mixed,
    search,
    self_consistency,
)
from core.inference.search.multi_stage import ReplayEnvironment


class Listed:
    """Answers from a list, in order."""

    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompts, n, sampling):
        return [Completions(self.texts[:n]) for _ in prompts]


class Oracle:
    """Passes the text "right"; a partial text is worth its share of leading ones."""

    stages = ("check",)

    def __init__(self):
        self.calls = 0

    def verify(self, task, text, *, partial=False):
        self.calls += 1
        if partial:
            return Verdict("check", False, text.count("1") / max(1, len(text)))
        return Verdict("check", text == "right" or text == "1" * 6, text.count("1") / 10)


def test_best_of_n_with_an_oracle_is_pass_at_n_exactly():
    texts = ["right"] * 3 + ["wrong"] * 5
    for n in (1, 2, 4, 8):
        draws = list(itertools.combinations(texts, n))
        found = sum(best_of_n(Listed(list(d)), Oracle(), None, "p", n).answer == "right" for d in draws) / len(draws)
        assert found == pytest.approx(pass_at_k(8, 3, n))


def test_equal_texts_are_verified_once_and_the_first_best_is_chosen():
    oracle = Oracle()
    trace = best_of_n(Listed(["a", "1", "a", "1"]), oracle, None, "p", 4)
    assert (trace.best, oracle.calls, trace.verifies, len(trace.verdicts)) == (1, 2, 2, 4)
    with pytest.raises(ConfigError):
        best_of_n(Listed([]), oracle, None, "p", 0)


def test_self_consistency_takes_the_most_frequent_answer():
    trace = self_consistency(Listed(["x 1", "y 2", "z 2", "none"]), "p", 4, lambda t: t[2:] if t != "none" else None)
    assert trace.answer == "y 2" and trace.scores == [0.25, 0.5, 0.5, 0.0]
    assert self_consistency(Listed(["a"]), "p", 1, lambda t: None).answer == ""


class Bits:
    """Adds one random bit at a time, and nothing after six."""

    def __init__(self):
        self.drawn = 0

    def generate(self, prompts, n, sampling):
        draw = random.Random(sampling.seed)
        self.drawn += n * len(prompts)
        return [Completions(["" if len(p) >= 7 else draw.choice("01") for _ in range(n)]) for p in prompts]


def test_a_beam_follows_the_process_reward():
    oracle = Oracle()
    trace = beam_search(Bits(), oracle, None, "p", beams=2, branches=6, step_tokens=1, max_steps=10)
    assert trace.answer == "111111" and trace.verdicts[trace.best].passed and trace.tokens > 6
    alone = beam_search(Bits(), Oracle(), None, "p", beams=1, branches=1, step_tokens=1, max_steps=10)
    assert len(alone.candidates) == 1 and alone.verifies == 1
    half = Bits()
    mixed(half, Oracle(), None, "p", process_steps=2, beams=2, branches=6, step_tokens=1, max_steps=10)
    whole = Bits()
    beam_search(whole, Oracle(), None, "p", beams=2, branches=6, step_tokens=1, max_steps=10)
    assert half.drawn < whole.drawn
    with pytest.raises(ConfigError):
        beam_search(Bits(), oracle, None, "p", beams=0)


# ---- allocations -----------------------------------------------------------------------------------------------


def small(seed=0, noise=None):
    draw = random.Random(seed)
    stages = (Stage("plan", ("s", "l"), (1, 2, 4)), Stage("write", ("s", "l"), (1, 2, 4)))
    chance = {("plan", "s"): 0.6, ("plan", "l"): 0.5, ("write", "s"): 0.2, ("write", "l"): 0.7}
    outcomes = {key: [[float(draw.random() < p) for _ in range(4)] for _ in range(40)] for key, p in chance.items()}
    prices = {key: (1.0 if key[1] == "s" else 5.0) for key in chance}
    return ReplayEnvironment(TaskGraph(stages), outcomes, prices, noise)


def best_score(environment, most=1e9):
    parts = [[(m, n) for m in s.models for n in s.samples] for s in environment.graph.stages]
    found = [Allocation(c) for c in itertools.product(*parts)]
    return max(environment.evaluate(a) for a in found if environment.cost(a) <= most)


@pytest.mark.parametrize("agent", [RuleAgent, RandomAgent, GridAgent, HillClimbAgent, TpeAgent])
def test_every_agent_finds_the_best_of_a_small_space_and_tries_nothing_twice(agent):
    environment = small()
    assert environment.graph.size == 36
    result = search(environment, agent(), trials=36, test=small(1))
    tried = [t.allocation for t in result.archive.tried]
    assert len(tried) == len(set(tried)) <= 36
    assert result.best.score >= 0.99 * best_score(environment) and result.test is not None


@pytest.mark.parametrize("seed", range(20))
def test_spending_never_exceeds_a_budget(seed):
    draw = random.Random(seed)
    environment, budget, most = small(seed), draw.uniform(1, 120), draw.uniform(2, 40)
    agent = draw.choice([RuleAgent(), RandomAgent(seed), HillClimbAgent(seed), TpeAgent(seed, start=3)])
    result = search(environment, agent, budget=budget, run_budget=most, trials=50)
    assert result.spent <= budget * (1 + 1e-9) and result.spent == pytest.approx(
        sum(t.cost for t in result.archive.tried)
    )
    assert all(t.cost <= most for t in result.archive.tried)


def test_more_samples_can_hurt_and_the_rules_see_it():
    # one good sample in four: a chooser that is misled does better with one draw of a sure thing
    stage = Stage("s", ("m",), (1, 2, 4, 8))
    rows = [[1.0] + [0.0] * 7 for _ in range(10)]
    environment = ReplayEnvironment(TaskGraph((stage,)), {("s", "m"): rows}, {("s", "m"): 1.0}, {"s": 0.9})
    result = search(environment, RuleAgent(), trials=10)
    assert result.best.allocation.choices == (("m", 1),)


def test_a_language_model_proposes_and_is_checked():
    answers = iter([
        'I would try [[["s", 4], ["l", 2]], [["x", 1], ["l", 2]], [["s", 3], ["l", 2]]]',
        "no idea",
        json.dumps([[["s", 4], ["l", 2]]]),
    ])  # fmt: skip
    seen = []

    def ask(prompt):
        seen.append(prompt)
        return next(answers, "[]")

    agent = LLMAgent(ask)
    result = search(small(), agent, trials=4)
    assert result.archive.tried[0].allocation == Allocation((("s", 4), ("l", 2))) and agent.rejected == 2
    assert "Stage plan: models s, l" in seen[0] and "score" in seen[1] and len(result.archive.tried) == 4


def test_proposals_outside_the_space_are_errors():
    class Wild:
        def propose(self, graph, archive, affordable):
            return [Allocation((("s", 3), ("l", 1)))]

    with pytest.raises(ConfigError, match="plan"):
        search(small(), Wild())
    with pytest.raises(ConfigError):
        Stage("x", ("m",), (2, 1))
    assert search(small(), RuleAgent(), run_budget=0.5).best is None and Archive().best is None


def test_costs_in_flops_and_prices():
    assert CallCost(parameters=10).of(3, 2, calls=4) == 2 * 10 * (3 + 8)
    attended = 3 * 4 / 2 + 1 * 2 * (3 + 1.5)
    assert CallCost(parameters=10, layers=2, hidden=5).of(3, 2) == 2 * 10 * 5 + 4 * 2 * 5 * attended
    assert CallCost(prompt_price=0.1, token_price=1.0).of(10, 2, calls=3) == pytest.approx(7.0)
    spending = Spending(10.0)
    spending.pay(10.0, "a")
    assert spending.left == 0 and not spending.affords(0.1)
    with pytest.raises(BudgetExceeded):
        spending.pay(1.0)
