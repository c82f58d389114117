"""Writing and repairing under a budget: samples are drawn once, and the search finds who should do what."""

from __future__ import annotations

import pytest

from apps.rtl import RtlHarness, RtlPipeline
from apps.rtl.harness import reference_as_candidate
from apps.rtl.scaling import write_and_repair
from apps.rtl.taskgen import tasks
from core.errors import ConfigError
from core.execution.tools import has
from core.inference.engines.script import ScriptEngine
from core.inference.request import Output
from core.inference.search import Allocation, LiveEnvironment, RuleAgent, Stage, TaskGraph, search

needs_icarus = pytest.mark.skipif(not has("iverilog"), reason="iverilog is not installed (Debian package: iverilog)")


def environment(calls, samples=(1, 2, 4)):
    graph = TaskGraph((Stage("a", ("x",), samples), Stage("b", ("x", "y"), samples)))

    def draw(stage, model):
        def sample(example, before, first, count):
            calls.append((stage, model, example, first, count))
            return [f"{model}{i}" for i in range(first, first + count)]

        return sample

    draws = {(s, m): draw(s, m) for s, m in (("a", "x"), ("b", "x"), ("b", "y"))}
    fuse = {name: lambda example, before, texts: before + texts[-1] for name in "ab"}
    prices = {("a", "x"): 1.0, ("b", "x"): 2.0, ("b", "y"): 5.0}
    return LiveEnvironment(graph, draws, fuse, lambda e, text: float(text == "x1y0"), [0, 1], prices)


def test_samples_are_drawn_once_and_added_to():
    calls = []
    world = environment(calls)
    one = Allocation((("x", 1), ("x", 1)))
    assert world.evaluate(one) == 0 and world.evaluate(one) == 0 and len(calls) == 4
    assert world.evaluate(one.replaced(1, model="y")) == 0 and [c[0] for c in calls[4:]] == ["b", "b"]
    calls.clear()
    assert world.evaluate(Allocation((("x", 2), ("y", 1)))) == 1
    assert ("a", "x", 0, 1, 1) in calls, "the second sample is added to the first"
    assert world.cost(Allocation((("x", 2), ("y", 4)))) == 2 * (2 + 20) and world.drawn == 10


def test_what_is_missing_is_an_error_before_anything_is_drawn():
    graph = TaskGraph((Stage("a", ("x",)),))
    for draw, fuse, examples, words in (
        ({}, {"a": max}, [1], "no way or no price"), ({("a", "x"): print}, {}, [1], "to fuse"),
        ({("a", "x"): print}, {"a": max}, [], "no examples"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            LiveEnvironment(graph, draw, fuse, float, examples, {("a", "x"): 1.0})


class Seeded(ScriptEngine):
    """Answers by the seed of the sample: right for multiples of `every`."""

    def __init__(self, examples, every, repairs):
        self.examples, self.every, self.repairs = list(examples), every, repairs

    def generate(self, requests, sampling):
        (request,) = requests
        example = next(e for e in self.examples if e.spec in request.text)
        code = reference_as_candidate(example)
        repairing = "This attempt is wrong" in request.text
        right = self.repairs if repairing else (sampling.seed + 1) % self.every == 0
        return [Output([], code if right else code.replace("<=", "<= ~", 1).replace("assign y =", "assign y = ~"))]


@needs_icarus
def test_the_search_finds_who_writes_and_who_repairs():
    examples = list(tasks(3, families=["register", "counter", "shift_register"]))
    pipes = {
        "writer": RtlPipeline(Seeded(examples, 2, False), None), "fixer": RtlPipeline(Seeded(examples, 99, True), None)
    }  # fmt: skip
    world = write_and_repair(pipes, examples, RtlHarness(), prices={"writer": 1.0, "fixer": 1.5}, samples=(1, 2))
    choose = {(("writer", 1), ("writer", 1)): 0, (("writer", 2), ("writer", 1)): 1, (("writer", 1), ("fixer", 1)): 1,
              (("fixer", 2), ("writer", 2)): 0}  # fmt: skip
    assert {choices: world.evaluate(Allocation(choices)) for choices in choose} == choose
    found = search(world, RuleAgent(), run_budget=3 * 2.6, trials=20)
    assert found.best.score == 1 and found.best.cost <= 3 * 2.6
    assert found.best.allocation.choices == (("writer", 1), ("fixer", 1))
