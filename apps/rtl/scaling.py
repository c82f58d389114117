"""Writing and repairing as stages that share a budget: which model writes how often, and which repairs how often.

    environment = write_and_repair({"small": pipe, "large": other}, examples, harness, prices={"small": 1, "large": 9})
    search(environment, RuleAgent(), run_budget=…)

Both stages choose by the verdict, which a designer with a testbench has at hand; a score reported from it is that of a
search with an oracle, and is to be said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.rtl import prompts
from apps.rtl.example import RtlExample
from apps.rtl.harness import RtlHarness
from apps.rtl.source import extract
from apps.rtl.verdict import STAGES
from apps.rtl.verifier import feedback
from core.data.segments import prompt_segments, render
from core.inference.refine import EngineGenerator
from core.inference.request import SamplingParams
from core.inference.search import LiveEnvironment, Stage, TaskGraph


def write_and_repair(
    pipelines: Mapping[str, Any],
    examples: Sequence[RtlExample],
    harness: RtlHarness,
    *,
    prices: Mapping[str, float],
    samples: Sequence[int] = (1, 2, 4, 8),
    sampling: SamplingParams | None = None,
) -> LiveEnvironment:
    """The environment of the stages "write" and "repair".

    Args:
        pipelines: name → `RtlPipeline`. prices: name → cost of an answer. sampling: a temperature of 0.8 by default.
    """
    how = sampling or SamplingParams(512, temperature=0.8, top_p=0.95)
    known: dict[tuple[str, str], Any] = {}

    def verdict(example: RtlExample, text: str) -> Any:
        key = (example.key, text)
        if key not in known:
            known[key] = harness.verify(example, text, wave=True)
        return known[key]

    def write(name: str):
        def draw(example: RtlExample, before: str, first: int, count: int) -> list[str]:
            return _answers(pipelines[name], "spec", prompts.fields(example), how, first, count)

        return draw

    def repair(name: str):
        def draw(example: RtlExample, before: str, first: int, count: int) -> list[str]:
            found = verdict(example, before)
            if found.passed:
                return [before] * count
            values = prompts.fields(example, extract(before, example.header) or before, feedback(found))
            return _answers(pipelines[name], "repair", values, how, first, count)

        return draw

    def best(example: RtlExample, before: str, texts: Sequence[str]) -> str:
        return max([before, *texts] if before else texts, key=lambda text: _rank(verdict(example, text)))

    names = tuple(pipelines)
    graph = TaskGraph((Stage("write", names, tuple(samples)), Stage("repair", names, tuple(samples))))
    draws = {(stage, name): make(name) for stage, make in (("write", write), ("repair", repair)) for name in names}
    return LiveEnvironment(
        graph, draws, {"write": best, "repair": best}, lambda example, text: float(verdict(example, text).passed),
        examples, {(stage.name, name): prices[name] for stage in graph.stages for name in names},
    )  # fmt: skip


def _answers(pipe: Any, template: str, values: Mapping[str, str], how: SamplingParams, first: int, count: int) -> list:
    prompt = pipe.request(prompt_segments(render(prompts.get_template(template), dict(values)))).text
    generator = EngineGenerator(pipe.engine, pipe.tokenizer)
    return generator.generate([prompt], count, how.updated({"seed": first})).pop().texts


def _rank(verdict: Any) -> tuple[bool, int, float]:
    return verdict.passed, STAGES.index(verdict.stage), verdict.score
