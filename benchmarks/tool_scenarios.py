"""Thirty scripted runs of the depth-first search over calls, and the visits and model calls that its rules prescribe.

A script says what the model answers, call by call. A letter is one answer: `o` a call that works, `t` a thought and a
call that works, `b` bad arguments, `h` a tool that does not exist, `m` a thought alone, `u` a call that cannot be read,
`g` giving up, `a` an answer. A visit is written as the answer's number; its parent is the number before the colon, `.`
the root. The trees were worked out by hand from the rules: children are made in turn and followed to their end; an
answer and a give-up climb two, the depth limit and used-up children one; a climb above one makes no further child.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scenario:
    """A script and what must come of it.

    Args:
        visits: "parent:number" of every model call, in order. finish: why the run ends; number: of the call whose node
            stands for it.
    """

    name: str
    script: str
    visits: str
    finish: str
    number: int
    options: dict[str, Any] = field(default_factory=dict)


def deep(depth: int, **options: Any) -> dict[str, Any]:
    return {"max_depth": depth, **options}


SCENARIOS = (
    # one chain
    Scenario("the first call answers", "a", ".:1", "answer", 1),
    Scenario("a chain to an answer", "ooa", ".:1 1:2 2:3", "answer", 3),
    Scenario("thoughts count as nodes", "tta", ".:1 1:2 2:3", "answer", 3),
    Scenario("a thought alone is followed by another step", "ma", ".:1 1:2", "answer", 2),
    Scenario("bad arguments are seen and mended", "boa", ".:1 1:2 2:3", "answer", 3),
    Scenario("a tool that does not exist", "hoa", ".:1 1:2 2:3", "answer", 3),
    Scenario("a call that cannot be read", "ua", ".:1 1:2", "answer", 2),
    Scenario("an answer at the depth limit counts", "ooa", ".:1 1:2 2:3", "answer", 3, deep(6)),
    # giving up climbs two: the parent makes no sibling, the grandparent does
    Scenario("giving up at once ends the search", "g", ".:1", "gave_up", 1),
    Scenario("giving up below one call: the root tries again", "oga", ".:1 1:2 .:3", "answer", 3),
    Scenario("giving up below two calls: the first tries again", "ooga", ".:1 1:2 2:3 1:4", "answer", 4),
    Scenario("giving up twice climbs twice", "oogoga", ".:1 1:2 2:3 1:4 4:5 .:6", "answer", 6),
    Scenario("a sibling that gives up ends its parent", "ogg", ".:1 1:2 .:3", "gave_up", 2),
    Scenario("the first give-up stands where nothing answers", "oogogog", ".:1 1:2 2:3 1:4 4:5 .:6 6:7", "gave_up", 3),
    Scenario("an answer stands before a give-up", "ogta", ".:1 1:2 .:3 3:4", "answer", 4),
    # the depth limit climbs one: the parent makes a sibling
    Scenario("the depth limit: a sibling of the last", "ooa", ".:1 1:2 1:3", "answer", 3, deep(4)),
    Scenario("double failure at the limit climbs on", "oooa", ".:1 1:2 1:3 .:4", "answer", 4, deep(4)),
    Scenario("all children used up", "oooooo", ".:1 1:2 1:3 .:4 4:5 4:6", "depth", 6, deep(4)),
    Scenario("depth one: a call is too deep", "oo", ".:1 .:2", "depth", 2, deep(2)),
    Scenario("a thought can pass the limit within its step", "tta", ".:1 .:2 .:3", "answer", 3, deep(3, width=3)),
    Scenario("limit, then give-up, then answer", "oogoa", ".:1 1:2 1:3 .:4 4:5", "answer", 5, deep(4)),
    # budgets
    Scenario("the budget ends a chain", "ooo", ".:1 1:2 2:3", "budget", 3, {"max_calls": 3}),
    Scenario("the last call of the budget may answer", "ooa", ".:1 1:2 2:3", "answer", 3, {"max_calls": 3}),
    Scenario("the budget ends a search", "ogoo", ".:1 1:2 .:3 3:4", "budget", 2, {"max_calls": 4}),
    Scenario("a budget of one", "o", ".:1", "budget", 1, {"max_calls": 1}),
    # width and number of answers
    Scenario("width one gives up at once", "og", ".:1 1:2", "gave_up", 2, {"width": 1}),
    Scenario("width three", "ogogoga", ".:1 1:2 .:3 3:4 .:5 5:6", "gave_up", 2, {"width": 3}),
    Scenario("two answers: the second from two levels up", "ooaa", ".:1 1:2 2:3 1:4", "answer", 3, {"answers": 2}),
    Scenario("two answers wanted, one found", "aoo", ".:1", "answer", 1, {"answers": 2}),
    Scenario("every failure restarts at the root", "oogoga", ".:1 1:2 2:3 .:4 4:5", "gave_up", 3, {"climb": 0}),
)  # fmt: skip


def say(letter: str, number: int) -> str:
    """The model's answer; each differs from all others."""

    def call(name: str, **arguments: Any) -> str:
        return json.dumps([{"name": name, "arguments": arguments}])

    made = {
        "o": call("work", n=number),
        "t": f"Step {number}.\n{call('work', n=number)}",
        "b": call("work", n=str(number)),
        "h": call(f"unknown{number}", n=number),
        "m": f"Only a thought {number}.",
        "u": f'[{{"name": "work", "arguments": {number}',
        "g": call("Finish", return_type="give_up_and_restart", final_answer=str(number)),
        "a": call("Finish", return_type="give_answer", final_answer=str(number)),
    }
    return made[letter]


def work(n: int) -> str:
    """Do one piece of work.

    Args:
        n: which piece.
    """
    return f"piece {n} done"


def run(scenario: Scenario, strategy: str = "dfsdt") -> tuple[list[str], Any]:
    """(visits, result) of a scripted run."""
    from apps.tool_use.executors import Local
    from apps.tool_use.pipeline import ToolUseConfig, ToolUsePipeline
    from core.inference.engines.script import ScriptEngine

    script: Iterator[str] = iter(say(letter, number) for number, letter in enumerate(scenario.script, 1))
    config = ToolUseConfig(strategy=strategy, **scenario.options)  # type: ignore[arg-type]
    executor = Local([work], trusted=True)
    pipeline = ToolUsePipeline(ScriptEngine(lambda prompt: next(script)), None, config, executor=executor)
    result = pipeline("Do it.")
    return visits(result.meta["trace"]["tree"]), result


def visits(tree: dict[str, Any]) -> list[str]:
    """ "parent:number" of every step of a tree, in the order of their visits."""
    found: dict[int, int] = {}

    def walk(node: dict[str, Any], before: int) -> None:
        order = node["expand_num"]
        if order:
            found[order] = before
        for child in node["children"]:
            walk(child, order or before)

    walk(tree, 0)
    return [f"{found[order] or '.'}:{order}" for order in sorted(found)]
