"""The check after every step: syntax first, then tests, in the sandbox. A run that does not end has failed.

A report lists failures as short texts that stay the same for the same fault, so that an agent can be told only of those
that are new.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.execution import Policy, Sandbox, Step


@dataclass(frozen=True)
class StepReport:
    """What a check found; passed when there is no failure."""

    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    def new_since(self, known: Sequence[str]) -> tuple[str, ...]:
        """Failures that were not there before."""
        return tuple(f for f in self.failures if f not in known)


class Evaluator(Protocol):
    """Checks all files of a store.

    One that also has `finished(files)` is asked that instead when the last instruction is said to be carried out: what
    only the whole must satisfy.
    """

    def evaluate(self, files: Mapping[str, str]) -> StepReport: ...


class CommandEvaluator:
    """Commands that must all succeed on the files.

    Args:
        commands: each a list of words. policy: of the sandbox. lines: of output kept for a failure.
    """

    def __init__(self, commands: Sequence[Sequence[str]], policy: Policy | None = None, lines: int = 12) -> None:
        self.commands, self.lines = [list(command) for command in commands], lines
        self.box = Sandbox.best(policy or Policy(wall_s=20))

    def evaluate(self, files: Mapping[str, str]) -> StepReport:
        done = self.box.run([Step(command) for command in self.commands], dict(files))
        failures = [
            f"{' '.join(command)}: {step.status}" + _tail(step.err or step.out, self.lines)
            for command, step in zip(self.commands, done.steps)
            if step.status != "ok"
        ]
        return StepReport(tuple(failures) if done.steps else (f"the check could not run: {done.why}",))


class PythonEvaluator:
    """Syntax of every .py file, then the tests in `test_*.py` by unittest, each file by itself.

    Args:
        policy: of the sandbox; its `wall_s` holds for each file of tests.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.box = Sandbox.best(policy or Policy(wall_s=20))

    def evaluate(self, files: Mapping[str, str]) -> StepReport:
        failures = []
        for path, text in files.items():
            if path.endswith(".py"):
                try:
                    ast.parse(text, path)
                except (SyntaxError, ValueError) as error:
                    failures.append(f"{path}:{getattr(error, 'lineno', 1)}: {getattr(error, 'msg', error)}")
        tests = [p for p in files if re.fullmatch(r"(.*/)?test_\w+\.py", p)]
        if failures or not tests:
            return StepReport(tuple(failures))
        from core.execution.backends import interpreter

        python = interpreter()[0]
        done = self.box.run([Step([python, "-m", "unittest", "-q", _module(p)]) for p in tests], dict(files))
        for path, step in zip(tests, done.steps):
            if step.status == "ok":
                continue
            named = re.findall(r"^(?:FAIL|ERROR): (.+)$", step.err, re.MULTILINE)
            if step.status == "nonzero" and named:
                reasons = re.findall(r"^(\w*(?:Error|Exception)\b.*)$", step.err, re.MULTILINE)
                failures += [f"{path}: {name}: {why[:200]}" for name, why in zip(named, reasons or [""] * len(named))]
            else:
                failures.append(f"{path}: {step.status}{_tail(step.err, 6)}")
        return StepReport(tuple(failures) if done.steps else (f"the tests could not run: {done.why}",))


class TextEvaluator:
    """Checks of a long text: least and most words of each file, headings that must be there, references that resolve.

    Args:
        words: (least, most) of a file. headings: path → headings. A reference is written `[see: Heading]`.
    """

    def __init__(
        self, words: tuple[int, int] = (1, 10**9), headings: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.words, self.headings = words, headings or {}

    def evaluate(self, files: Mapping[str, str]) -> StepReport:
        failures, known = [], set()
        for text in files.values():
            known |= {h.strip() for h in re.findall(r"^#+\s+(.+)$", text, re.MULTILINE)}
        for path, text in files.items():
            count = len(text.split())
            if not self.words[0] <= count <= self.words[1]:
                failures.append(f"{path}: {count} words, expected {self.words[0]} to {self.words[1]}")
            here = {h.strip() for h in re.findall(r"^#+\s+(.+)$", text, re.MULTILINE)}
            failures += [f"{path}: the heading '{h}' is missing" for h in self.headings.get(path, ()) if h not in here]
            for name in re.findall(r"\[see: ([^\]]+)\]", text):
                if name.strip() not in known:
                    failures.append(f"{path}: the reference to '{name}' leads nowhere")
        return StepReport(tuple(failures))


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def _tail(text: str, lines: int) -> str:
    kept = [line for line in text.strip().splitlines() if line.strip()][-lines:]
    return "\n  " + "\n  ".join(line[:200] for line in kept) if kept else ""
