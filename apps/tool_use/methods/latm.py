"""LATM, language models as tool makers (Cai et al. 2023): a large model makes a function once, a small one uses it.

The maker writes a function from three questions with answers, then calls of it for three more; the function is frozen
while the calls are mended. Function and worked calls are stored. For a new question a dispatcher names the stored tool,
or says that the task is new; the user, a small model, turns the question into a call, which runs in the sandbox. What
no tool solves is collected until there are examples enough to make one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.executors.observation import FAILED, Observation
from apps.tool_use.session import Outcome, Session
from apps.tool_use.tool_store import Bench, MadeTool, ToolStore, Tried, Worked
from apps.tool_use.trace import ToolEvent
from core.errors import AppInputError, BudgetExceeded, SandboxError

Ask = Callable[[str], str]
"""A prompt → what a model answers."""
NEW = "new_task"

MAKE = (
    "Write one general Python function that solves every task of this kind, from arguments that are read off the "
    "question. Use the standard library only, return the answer, and put all of it into one ```python block.\n"
    "Task: {task}\n{examples}"
)
CALL = (
    "{source}\n\nFor each question write Python that calls the function above and sets `ans` to its result. "
    "Put the code for each question into a ```python block of its own, in order.\n{questions}"
)
MEND = "{before}\n\nYour answer:\n{answer}\n\nThis went wrong:\n{errors}\n\nWrite {what} again."
USE = "{source}\n\n{worked}Question: {question}\nCode that sets `ans`:\n"
DISPATCH = (
    "Tools:\n{cards}\n\nQuestion: {question}\nWhich tool solves it? Answer with its name alone, or with "
    f"{NEW} when none does.\nTool:"
)


@dataclass(frozen=True)
class Example:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Attempt:
    """A try of the maker, for whoever watches: stage make or verify, the text, and what went wrong in each test."""

    stage: str
    number: int
    text: str
    errors: tuple[str, ...]


class ToolMaker:
    """Makes a tool from examples.

    Args:
        model: the large model. name: of it, for the card. tries: for the function, and again for its calls.
        timeout_s: of a call of the tool.
    """

    def __init__(self, model: Ask, name: str = "", *, tries: int = 3, timeout_s: float = 5.0) -> None:
        self.model, self.name, self.tries, self.timeout_s = model, name, tries, timeout_s

    def make(
        self, name: str, task: str, train: Sequence[Example], validation: Sequence[Example]
    ) -> Generator[Attempt, None, MadeTool]:
        """Make and verify a tool; every try is told. The generator returns the tool, which is not stored yet.

        Raises:
            AppInputError: no examples. BudgetExceeded: no try worked; the message holds the last error.
        """
        if not train or not validation:
            raise AppInputError("a tool is made from training and validation examples", hint="three and three")
        source, tries = yield from self._function(task, train)
        with Bench(source, self.timeout_s) as bench:
            worked, more = yield from self._calls(source, validation, bench)
        return MadeTool(name, task, source, worked, self.name, (tries, more), self.timeout_s)

    def _function(self, task: str, train: Sequence[Example]) -> Generator[Attempt, None, tuple[str, int]]:
        first = prompt = MAKE.format(task=task, examples=_listed(train))
        error = ""
        for number in range(1, self.tries + 1):
            text = self.model(prompt)
            source = "\n\n".join(blocks(text))
            error = self._defines(source)
            yield Attempt("make", number, text, (error,) if error else ())
            if not error:
                return source, number
            prompt = MEND.format(before=first, answer=text, errors=error, what="the function")
        raise BudgetExceeded(f"no function of {self.tries} runs", where=task, hint=error)

    def _defines(self, source: str) -> str:
        """What keeps the source from being a tool; "" for nothing."""
        if not re.search(r"^def \w+\(", source, re.M):
            return "there is no function in a ```python block"
        try:
            with Bench(source, self.timeout_s):
                return ""
        except SandboxError as error:
            return f"{error.what}\n{error.hint or ''}".strip()

    def _calls(
        self, source: str, validation: Sequence[Example], bench: Bench
    ) -> Generator[Attempt, None, tuple[tuple[Worked, ...], int]]:
        first = prompt = CALL.format(source=source, questions=_listed(validation))
        errors: list[str] = []
        for number in range(1, self.tries + 1):
            text = self.model(prompt)
            codes = blocks(text)
            if len(codes) != len(validation):
                errors = [f"{len(codes)} blocks of code for {len(validation)} questions"]
            else:
                tried = [bench.run(code, example.answer) for code, example in zip(codes, validation)]
                errors = [f"question {n}: {t.error}" for n, t in enumerate(tried, 1) if not t.right]
            yield Attempt("verify", number, text, tuple(errors))
            if not errors:
                return tuple(Worked(e.question, e.answer, c) for e, c in zip(validation, codes)), number
            prompt = MEND.format(before=first, answer=text, errors="\n".join(errors), what="all the calls")
        raise BudgetExceeded(
            f"the function does not pass its tests after {self.tries} tries", hint="; ".join(errors)[:400]
        )


class ToolUser:
    """Uses a stored tool: the small model writes the call, the sandbox runs it. Close it, or use it in a `with`."""

    def __init__(self, model: Ask, tool: MadeTool) -> None:
        self.model, self.tool = model, tool
        self.bench = Bench(tool.source, tool.timeout_s)

    def use(self, question: str, answer: str | None = None) -> tuple[str, Tried]:
        """(code, what it came to)."""
        code = code_of(self.model(use_prompt(self.tool, question)))
        return code, self.bench.run(code, answer)

    def __enter__(self) -> ToolUser:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.bench.__exit__(*exc)


def use_prompt(tool: MadeTool, question: str, most: int | None = None) -> str:
    """The function, `most` of its worked calls, and the question: what a small model goes on from."""
    shown = tool.tests if most is None else tool.tests[:most]
    worked = "".join(f"Question: {t.question}\nCode that sets `ans`:\n{t.code}\n\n" for t in shown)
    return USE.format(source=tool.source, worked=worked, question=question)


def dispatch(model: Ask, store: ToolStore, question: str) -> str:
    """The name of the stored tool for a question, or `NEW`; an answer that names no tool counts as new."""
    cards = store.cards()
    if not cards:
        return NEW
    listed = "\n".join(f"{c['name']}: {c['task']} Example: {c['tests'][0]['question'][:200]}" for c in cards)
    said = model(DISPATCH.format(cards=listed, question=question)).strip().split()
    return next((c["name"] for c in cards if said and said[0].strip("'\"`.,:") == c["name"]), NEW)


@dataclass
class Workshop:
    """Maker, user, dispatcher and store together: it answers, and learns tasks it has no tool for.

    Args:
        maker: of new tools. small: the model that dispatches and uses. needed: examples that make a tool, half of them
            for its tests.
    """

    maker: ToolMaker
    small: Ask
    store: ToolStore
    needed: int = 6
    waiting: dict[str, list[Example]] = field(default_factory=dict)

    def answer(self, question: str) -> tuple[str, str, Tried | None]:
        """(tool or `NEW`, code, what it came to)."""
        name = dispatch(self.small, self.store, question)
        if name == NEW:
            return NEW, "", None
        with ToolUser(self.small, self.store.load(name)) as user:
            code, tried = user.use(question)
        return name, code, tried

    def teach(self, name: str, task: str, example: Example) -> MadeTool | None:
        """Keep an example of a new task; the tool, once there are examples enough to make it."""
        kept = self.waiting.setdefault(name, [])
        kept.append(example)
        if len(kept) < self.needed:
            return None
        half = self.needed // 2
        making = self.maker.make(name, task, kept[:half], kept[half : self.needed])
        while True:
            try:
                next(making)
            except StopIteration as done:
                del self.waiting[name]
                return self.store.save(done.value)


def latm(session: Session, store: ToolStore) -> Generator[ToolEvent, None, Outcome]:
    """The strategy: dispatch, call the stored tool, show its result. The generator returns the `Outcome`."""

    def ask(prompt: str) -> str:
        return session.say([{"role": "user", "content": prompt}]).rest

    name = dispatch(ask, store, session.query)
    node = session.root.add(
        "Thought", f"The tool for this is {name}." if name != NEW else "No stored tool solves this."
    )
    node.messages = (*session.root.messages, {"role": "assistant", "content": node.text})
    yield ToolEvent("thought", node.text, root=session.root)
    if name == NEW:
        return Outcome("gave_up", node)
    with ToolUser(ask, store.load(name)) as user:
        code = code_of(ask(use_prompt(user.tool, session.query)))
        call = Call(name, {"code": code})
        yield ToolEvent("call", code, call=call, root=session.root)
        tried = user.bench.run(code)
    seen = Observation(str(tried.value), seconds=tried.seconds) if not tried.error else Observation(tried.error, FAILED)
    session.observations.append({**call.to_dict(), **seen.to_dict()})
    session.made += 1
    turn = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", **call.to_dict()}]}
    messages: tuple[Mapping[str, Any], ...] = (
        *node.messages, turn, {"role": "tool", "tool_call_id": "call_1", "content": seen.text},
    )  # fmt: skip
    node = node.add("Action", name).add(
        "Action Input", json.dumps(dict(call.arguments), ensure_ascii=False), observation=seen.text, status=seen.status
    )
    node.messages, node.terminal = messages, not tried.error
    for step in node.path() if node.terminal else ():
        step.finished = True
    yield ToolEvent("observation", seen.text, call=call, observation=seen, root=session.root)
    return Outcome("answer" if node.terminal else "gave_up", node)


def parse_examples(text: str) -> list[Example]:
    """Lines "question => answer". Raises `AppInputError` naming a line that is not one."""
    found = []
    for number, line in enumerate((text or "").splitlines(), 1):
        if line.strip():
            question, sign, answer = (part.strip() for part in line.rpartition("=>"))
            if not (question and sign and answer):
                raise AppInputError(f"line {number} is not 'question => answer'", where=line)
            found.append(Example(question, answer))
    return found


def blocks(text: str) -> list[str]:
    """The code of every ```python block."""
    return [found.strip() + "\n" for found in re.findall(r"```(?:python)?[ \t]*\n(.*?)```", text, re.S)]


def code_of(text: str) -> str:
    """A model's call: its first block of code, or all it said up to the next question."""
    found = blocks(text)
    return found[0] if found else text.partition("Question:")[0].strip() + "\n"


def _listed(examples: Sequence[Example]) -> str:
    return "\n".join(f"Question {n}: {e.question}\nAnswer {n}: {e.answer}" for n, e in enumerate(examples, 1))
