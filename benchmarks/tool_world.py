"""A world of services that fail at random, and an agent that knows only what its prompt shows.

A task has stages, and a stage has services that do the same. For a task each service is broken with probability p, for
good. The agent calls a service of the stage it is in, at random among those that its prompt does not show as failing;
after the last stage it answers, and where every service of a stage is known to fail it gives up. After an error it
gives up with a probability of its own, as impatient models do. It reads nothing but the prompt, so a strategy can help
it only by what it lets it see and by where it lets it begin again.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

STAGES, SERVICES = 4, 4


@dataclass(frozen=True)
class Task:
    """Which services are broken, by name."""

    number: int
    broken: frozenset[str]

    @property
    def solvable(self) -> bool:
        return all(any(name(s, n) not in self.broken for n in range(SERVICES)) for s in range(STAGES))


def name(stage: int, service: int) -> str:
    return f"stage{stage + 1}_service{service + 1}"


def make(number: int, failing: float, seed: int = 0) -> Task:
    """A task that can be solved."""
    rng = random.Random(f"{seed}:{number}:{failing}")
    while True:
        names = [name(stage, service) for stage in range(STAGES) for service in range(SERVICES)]
        task = Task(number, frozenset(n for n in names if rng.random() < failing))
        if task.solvable:
            return task


class Services:
    """Runs the calls of a task."""

    def __init__(self, task: Task) -> None:
        from apps.tool_use.spec import ToolSpec

        self.task = task
        schema = {"type": "object", "properties": {}}
        self.tools = tuple(
            ToolSpec(name(stage, service), "", schema) for stage in range(STAGES) for service in range(SERVICES)
        )

    def run_all(self, calls: Any) -> list[Any]:
        from apps.tool_use.executors.observation import FAILED, OK, Observation

        broken, done = Observation("FAILED", FAILED), Observation("DONE", OK)
        return [broken if call.name in self.task.broken else done for call in calls]


class Agent:
    """The model: prompt → a call as text."""

    def __init__(self, seed: str, impatience: float) -> None:
        self.rng, self.impatience = random.Random(seed), impatience

    def __call__(self, prompt: str) -> str:
        conversation = prompt.partition("User: Task")[2]
        chain = re.findall(r'Assistant: \[\{"name": "(\w+)".*\nTool: (\w+)', conversation)
        tried = re.findall(r'\{"name": "(\w+)", "arguments": \{\}, "result": "FAILED"\}', conversation)
        failed = {called for called, came in chain if came == "FAILED"} | set(tried)
        stage = sum(came == "DONE" for _, came in chain)
        if stage == STAGES:
            return _call("Finish", return_type="give_answer", final_answer="done")
        if chain and chain[-1][1] == "FAILED" and not tried and self.rng.random() < self.impatience:
            return _call("Finish", return_type="give_up_and_restart")
        left = [name(stage, service) for service in range(SERVICES) if name(stage, service) not in failed]
        if not left:
            return _call("Finish", return_type="give_up_and_restart")
        return _call(self.rng.choice(left))


def _call(called: str, **arguments: Any) -> str:
    return json.dumps([{"name": called, "arguments": arguments}])


def solve(task: Task, strategy: str, budget: int, impatience: float, seed: int = 0) -> tuple[bool, int]:
    """Whether a strategy answers within `budget` model calls, and how many it took.

    `react` is one chain; `react_n` begins anew until the budget is spent.
    """
    from apps.tool_use.pipeline import ToolUseConfig, ToolUsePipeline
    from core.inference.engines.script import ScriptEngine

    agent = Agent(f"{seed}:{task.number}:{strategy}", impatience)
    spent = 0
    while spent < budget:
        config = ToolUseConfig(strategy="dfsdt" if strategy == "dfsdt" else "react", max_calls=budget - spent)
        pipeline = ToolUsePipeline(ScriptEngine(agent), None, config, executor=Services(task))
        result = pipeline(f"Task {task.number}")
        spent += result.meta["model_calls"]
        if result.meta["finish"] == "answer":
            return True, spent
        if strategy != "react_n":
            break
    return False, spent
