"""The control unit: instruction by instruction, in a context that never grows over its limit.

Each instruction begins in a fresh context with the task, the files by name and a summary of the step before. The model
answers with one tool call at a time; `done` is granted only when the evaluator finds nothing. A context that would
overflow is summed up by the model and begun anew; a model that repeats itself is made bolder for a while. After every
turn everything is on disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.agents.evaluate import Evaluator
from core.agents.files import FileStore
from core.agents.instructions import InstructionRegistry
from core.config.files import read_json, write_json
from core.errors import BudgetExceeded, DataError

SYSTEM = (
    "You work on files, one instruction after another. Answer with exactly one JSON object and nothing else: "
    '{"tool": "write", "path": "…", "content": "the whole file"}, {"tool": "delete", "path": "…"}, '
    '{"tool": "view", "path": "…"}, {"tool": "list"} or, when the instruction is carried out, {"tool": "done"}.'
)
SUMMARISE = "Sum up in at most five sentences what has been done and what is left. Answer with the summary alone."
_HOTTER, _COOLER = 0.4, 0.1


@dataclass(frozen=True)
class Message:
    """One message: role system, user or assistant."""

    role: str
    text: str


class Model(Protocol):
    """Answers a conversation."""

    def __call__(self, messages: Sequence[Message], temperature: float) -> str: ...


@dataclass(frozen=True)
class AgentResult:
    """How a run ended: done, or failed at an instruction for a reason; and what it took."""

    status: str
    reason: str
    files: dict[str, str]
    instruction: int
    turns: int
    restarts: int


@dataclass
class _State:
    """Everything that a resumed run needs besides the files."""

    instruction: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)
    summary: str = ""
    asked: str = "turn"
    temperature: float = 0.0
    turns: int = 0
    turns_here: int = 0
    restarts: int = 0
    restarts_here: int = 0
    writes: int = 0
    failures: list[str] = field(default_factory=list)
    status: str = "running"
    reason: str = ""


class ControlUnit:
    """Runs a program of instructions.

    Args:
        model: answers conversations. registry, store, evaluator: of this package. task: what it is all about.
        context: most tokens of a prompt. reply: tokens kept free for the answer. count: text → tokens.
        folder: where the state is kept; a folder with a state is resumed.
        max_restarts, max_turns: of one instruction, before it fails cleanly.

    Raises:
        BudgetExceeded: not even the smallest prompt fits.
    """

    def __init__(
        self,
        model: Model,
        registry: InstructionRegistry,
        store: FileStore,
        evaluator: Evaluator,
        *,
        task: str,
        context: int = 4096,
        reply: int = 700,
        count: Callable[[str], int] | None = None,
        folder: str | Path | None = None,
        temperature: float = 0.0,
        max_restarts: int = 30,
        max_turns: int = 60,
    ) -> None:
        self.model, self.registry, self.store, self.evaluator = model, registry, store, evaluator
        self.task, self.context, self.reply = task, context, reply
        self.count = count or (lambda text: len(text) // 3 + 1)
        self.folder = Path(folder) if folder is not None else None
        self.base, self.max_restarts, self.max_turns = temperature, max_restarts, max_turns
        self.state = _State(temperature=temperature)
        self._said = ""
        if self.folder is not None and (self.folder / "state.json").is_file():
            self._resume()
        self.registry.start()
        largest = max(range(len(registry)), key=lambda i: self.count(registry[i]))
        needed = self._size([Message("system", SYSTEM), Message("user", self._opening(largest, "", ()))]) + 64
        if needed > self._room:
            raise BudgetExceeded(
                f"the task and instruction {largest + 1} alone take {needed} tokens of {self._room}",
                hint="give a larger context, or shorter instructions",
            )

    @property
    def _room(self) -> int:
        return self.context - self.reply

    def run(self, told: Callable[[str], Any] | None = None) -> AgentResult:
        """Go on until all instructions are done or one fails. `told` gets a line about every turn."""
        while self.state.status == "running":
            at, self._said = self.state.instruction, "begun anew with a summary"
            self._turn()
            self._save()
            if told is not None:
                told(f"{at + 1}/{len(self.registry)}  {self._said}")
        s = self.state
        return AgentResult(s.status, s.reason, self.store.files, s.instruction, s.turns, s.restarts)

    # ---- one turn ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        s = self.state
        if not s.messages:
            self._begin()
        if s.asked == "turn" and not self._fits():
            self._overflow()
            return
        if s.turns_here >= self.max_turns:
            self._fail(f"instruction {s.instruction + 1} took {s.turns_here} turns")
            return
        answer = self._ask()
        s.turns += 1
        s.turns_here += 1
        if s.asked == "summary of the step":
            self._said = "summed up"
            self._next(answer)
        elif s.asked == "summary of progress":
            s.summary, s.messages, s.asked = self._cut(answer.strip(), 200), [], "turn"
        else:
            self._answered(answer)

    def _ask(self) -> str:
        messages = [Message(m["role"], m["text"]) for m in self.state.messages]
        assert self._size(messages) <= self._room
        return self.model(messages, self.state.temperature)

    def _answered(self, answer: str) -> None:
        s = self.state
        repeated = [m["text"] for m in s.messages if m["role"] == "assistant"][-6:].count(answer) > 0
        s.temperature = min(1.0, s.temperature + _HOTTER) if repeated else max(self.base, s.temperature - _COOLER)
        result = self._call(answer)
        self._said = (result or "done: no failures").split("\n")[0]
        if s.asked == "turn":
            self._add(answer, result)
        else:
            s.messages = [*s.messages[:2], {"role": "user", "text": SUMMARISE}]
            if not self._fits():
                self._next("")

    def _call(self, answer: str) -> str:
        """What a tool says. `done` with a clean evaluation asks for the summary of the step."""
        try:
            call = parse_call(answer)
            tool = call["tool"]
            if tool == "done":
                last = self.state.instruction + 1 == len(self.registry)
                check = getattr(self.evaluator, "finished", None) if last else None
                report = (check or self.evaluator.evaluate)(self.store.files)
                if report.passed:
                    self.state.asked, self.state.failures = "summary of the step", []
                    return ""
                return "Not done: " + self._told(report)
            if tool == "list":
                return "Files: " + (", ".join(self.store.files) or "none")
            path = str(call.get("path", ""))
            if tool == "view":
                return f"{path}:\n{self.store.read(path)}"
            if tool == "delete":
                self.store.delete(path)
            elif tool == "write":
                content = call.get("content")
                if not isinstance(content, str):
                    raise DataError("write needs 'content', a text", field="content")
                if self.count(content) > self._room - 64:
                    raise DataError(f"{path} would not fit into the context", hint="split it into several files")
                self.store.write(path, content)
            else:
                raise DataError(f"there is no tool '{tool}'", expected="write, delete, view, list or done")
        except DataError as error:
            return f"Error: {error}"
        self.state.writes = len(self.store)
        report = self.evaluator.evaluate(self.store.files)
        told = "No failures." if report.passed else self._told(report)
        self.state.failures = list(report.failures)
        return f"{tool} {path}: ok. {told}"

    def _told(self, report: Any) -> str:
        """New failures in full, known ones as a number."""
        new = report.new_since(self.state.failures)
        known = len(report.failures) - len(new)
        self.state.failures = list(report.failures)
        parts = [*new[:5], *([f"{len(new) - 5} more new failures"] if len(new) > 5 else [])]
        return "\n".join([*parts, *([f"{known} failures as before"] if known else [])])

    # ---- the context -------------------------------------------------------------------------------------------

    def _opening(self, index: int, summary: str, files: Sequence[str]) -> str:
        parts = [
            f"Task: {self.task}", f"Instruction {index + 1} of {len(self.registry)}: {self.registry[index]}",
            f"Files: {', '.join(files) or 'none'}", f"So far: {summary or 'nothing yet.'}",
        ]  # fmt: skip
        return "\n".join(parts)

    def _begin(self) -> None:
        s, names = self.state, list(self.store.files)
        while True:
            opening = self._opening(s.instruction, s.summary, names)
            if self._size([Message("system", SYSTEM), Message("user", opening)]) + 64 <= self._room:
                break
            if s.summary:
                s.summary = s.summary[: len(s.summary) // 2]
            else:
                names = [*names[: len(names) // 2], "…"] if len(names) > 2 else []
        s.messages = [{"role": "system", "text": SYSTEM}, {"role": "user", "text": opening}]

    def _add(self, answer: str, result: str) -> None:
        """Append a turn; a result that alone would overflow is cut."""
        s = self.state
        room = self._room - self._size([Message(m["role"], m["text"]) for m in s.messages[:2]]) - 48
        half = max(16, room // 2)
        s.messages.append({"role": "assistant", "text": self._cut(answer, half)})
        s.messages.append({"role": "user", "text": self._cut(result, half)})

    def _fits(self) -> bool:
        return self._size([Message(m["role"], m["text"]) for m in self.state.messages]) <= self._room

    def _overflow(self) -> None:
        """Ask for a summary of what still fits, then begin the instruction anew; after too many times, fail."""
        s = self.state
        s.restarts += 1
        s.restarts_here += 1
        if s.restarts_here > self.max_restarts:
            self._fail(f"instruction {s.instruction + 1} was begun {s.restarts_here} times")
            return
        head, rest = s.messages[:2], s.messages[2:]
        while rest:
            rest = rest[2:]
            s.messages = [*head, *rest, {"role": "user", "text": SUMMARISE}]
            if self._fits():
                s.asked = "summary of progress"
                return
        s.messages, s.summary = [], ""

    def _next(self, summary: str) -> None:
        s = self.state
        s.summary, s.messages, s.asked = self._cut(summary.strip(), 200), [], "turn"
        s.instruction += 1
        s.turns_here = s.restarts_here = 0
        s.temperature = self.base
        if s.instruction == len(self.registry):
            s.status, s.reason = "done", "all instructions are carried out"

    def _fail(self, reason: str) -> None:
        self.state.status, self.state.reason = "failed", reason

    def _size(self, messages: Sequence[Message]) -> int:
        return sum(self.count(m.text) + 4 for m in messages)

    def _cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that takes at most so many tokens."""
        while self.count(text) > tokens and text:
            text = text[: int(len(text) * 0.8)]
        return text

    # ---- on disk -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.folder is not None:
            self.state.writes = len(self.store)
            write_json(self.folder / "state.json", asdict(self.state))

    def _resume(self) -> None:
        """The last saved turn: its messages, and the files as they were then."""
        assert self.folder is not None
        self.state = _State(**read_json(self.folder / "state.json"))
        self.store = FileStore(self.store.folder, self.state.writes, self.store.largest)


def parse_call(answer: str) -> dict[str, Any]:
    """The tool call in an answer. Raises `DataError` with the parser's own words; nothing is repaired."""
    text = answer.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, re.DOTALL)
    try:
        call = json.loads(fenced[1] if fenced else text)
    except json.JSONDecodeError as error:
        raise DataError(f"the answer is not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(call, dict) or not isinstance(call.get("tool"), str):
        raise DataError("the answer is not an object with a 'tool'", got=call)
    return call
