"""A recording in place of a model: what it says step by step for a few questions. The tools are run all the same.

With it the demo shows a chain, a search that turns back, calls made at once, and the making of a tool on any machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.tool_use import samples
from apps.tool_use.executors import Sandboxed
from apps.tool_use.functions import from_function
from apps.tool_use.methods.latm import Example
from core.errors import BackendUnavailable
from core.inference.engines.script import ScriptEngine


@dataclass(frozen=True)
class Recorded:
    """A question, how it is worked on, and the model's words in order."""

    query: str
    strategy: str
    texts: tuple[str, ...]


def _say(thought: str, *calls: tuple[str, dict[str, Any]]) -> str:
    return f"{thought}\n{json.dumps([{'name': name, 'arguments': arguments} for name, arguments in calls])}"


def _finish(thought: str, answer: str) -> str:
    return _say(thought, ("Finish", {"return_type": "give_answer", "final_answer": answer}))


RUNS = (
    Recorded(
        "What does the train from Paris to Lyon cost in US dollars?",
        "react",
        (
            _say("First I need the fare.", ("train_fare", {"origin": "Paris", "destination": "Lyon"})),
            _say("62 euros; now in dollars.", ("convert", {"amount": 62.0, "source": "EUR", "target": "USD"})),
            _finish("That is the answer.", "The train from Paris to Lyon costs 68.20 US dollars."),
        ),
    ),
    Recorded(
        "How do I get from Paris to Turin, and what is it in pounds?",
        "dfsdt",
        (
            _say("I look for a train.", ("train_fare", {"origin": "Paris", "destination": "Turin"})),
            _say("Not direct; perhaps by way of Geneva.", ("train_fare", {"origin": "Geneva", "destination": "Turin"})),
            _say("Trains do not go there.", ("Finish", {"return_type": "give_up_and_restart"})),
            _say("By way of Milan?", ("train_fare", {"origin": "Milan", "destination": "Turin"})),
            _say("No.", ("Finish", {"return_type": "give_up_and_restart"})),
            _say("Trains were tried; a coach then.", ("coach_fare", {"origin": "Paris", "destination": "Turin"})),
            _say("48 euros, in pounds.", ("convert", {"amount": 48.0, "source": "EUR", "target": "GBP"})),
            _finish("Found.", "Take the coach from Paris to Turin: it costs 40.80 pounds."),
        ),
    ),
    Recorded(
        "Four of us go from Paris to Lyon and on to Geneva by train. What does each pay?",
        "react",
        (
            _say(
                "Both fares at once.",
                ("train_fare", {"origin": "Paris", "destination": "Lyon"}),
                ("train_fare", {"origin": "Lyon", "destination": "Geneva"}),
            ),
            _say("62 + 34 is 96 for one, 384 for four.", ("share", {"total": 384.0, "people": 4})),
            _finish("So each pays their own two fares.", "Each pays 96.00 euros."),
        ),
    ),
)


def run_of(query: str) -> Recorded:
    """The recorded run of a question. Raises `BackendUnavailable` for any other."""
    for run in RUNS:
        if run.query == query.strip():
            return run
    raise BackendUnavailable(
        "this question was not recorded", hint="choose one of the examples, or let the loaded model answer"
    )


def engine(run: Recorded) -> ScriptEngine:
    """Says the recorded words, one a call."""
    words: Iterator[str] = iter(run.texts)
    return ScriptEngine(lambda prompt: next(words))


def executor() -> Sandboxed:
    """The sample tools, in the sandbox."""
    source = Path(samples.__file__).read_text(encoding="utf-8")
    return Sandboxed(source, [from_function(tool) for tool in samples.TOOLS], timeout_s=5)


TASK = "Days between two dates of one year."
TRAIN = (
    Example("From 1 March to 5 March 2025.", "4"),
    Example("From 28 February to 1 March 2024.", "2"),
    Example("From 30 April to 2 May 2025.", "2"),
)
TESTS = (
    Example("From 1 January to 31 December 2025.", "364"),
    Example("From 27 February to 2 March 2025.", "3"),
    Example("From 10 June to 1 July 2024.", "21"),
)
_MADE = """```python
from datetime import date

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]


def days_between(first_day, first_month, last_day, last_month, year):
    first = date(year, MONTHS.index(first_month) + 1, first_day)
    last = date(year, MONTHS.index(last_month) + 1, last_day)
    return (last - first).days
```"""
_DATES = re.compile(r"From (\d+) (\w+) to (\d+) (\w+) (\d{4})")


def _call(question: str) -> str:
    found = _DATES.search(question)
    if found is None:
        return "ans = None"
    a, month, b, other, year = found.groups()
    return f'ans = days_between({a}, "{month}", {b}, "{other}", {year})'


class RecordedMaker:
    """The large model: makes the function of `TASK`, and mends one of its calls."""

    def __call__(self, prompt: str) -> str:
        if "This went wrong" in prompt:
            return "\n".join(f"```python\n{_call(test.question)}\n```" for test in TESTS)
        if "days_between" in prompt:
            calls = [
                _call(TESTS[0].question),
                _call(TESTS[1].question).replace("2025", "2024"),
                _call(TESTS[2].question),
            ]
            return "\n".join(f"```python\n{call}\n```" for call in calls)
        if TASK in prompt and TRAIN[0].question in prompt:
            return _MADE
        raise BackendUnavailable("this task was not recorded", hint="let the loaded model make the tool")


def small(prompt: str) -> str:
    """The small model: turns a question about two dates into a call."""
    return _call(prompt.rsplit("Question: ", 1)[-1])
