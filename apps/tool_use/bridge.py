"""Plain answers become answers with code: select, insert, execute, filter (after ToolBridge, Jin et al. 2024).

An answer is worth a tool when it calculates, handles data or looks something up; rules tell. An inserter proposes code:
`equations` writes the left side of every equation as a program, `ModelInserter` lets a model rewrite the answer. The
code runs in the sandbox, and a row stays when it runs, computes something, and the text behind it agrees with what it
printed. The paper tells what the filters are for and not what they are; these are ours.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from apps.tool_use.interleaved import (
    CLOSE,
    OPEN,
    CodedAnswer,
    Piece,
    comes_to,
    numbers,
    pieces,
    plain,
    reaches,
    written,
)
from core.errors import DataError
from core.execution import Policy, Sandbox

SHOWN = 1024
"""Letters of a result that are shown."""
_EQUATION = re.compile(r"(?<![\w.])([\d$(][\d.,$%\s()]*(?:[-+*/x×÷][\d.,$%\s()]+)+)=\s*\$?(?=-?\d)")
_DATA = re.compile(r"\b(sort(ed)?|average|median|count(ed)?|list of|table|convert(ed)?|reverse|frequenc)", re.I)
_FACT = re.compile(r"\b(capital|population|founded|born in|invented|currency of|located in|president)\b", re.I)
_AHEAD = 60
Inserter = Callable[[CodedAnswer], str | None]
"""An answer → the same text with code in it; None when there is no place for code."""

_INSIDE = """
import contextlib, io
_names = {}

def run(code):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, _names)
    return out.getvalue()

def forget():
    _names.clear()
"""


class CodeRunner:
    """Runs pieces of code one after the other in a sandboxed interpreter that remembers names until `forget`.

    Raises:
        SandboxError: no sandbox works here, with what to install.
    """

    def __init__(self, timeout_s: float = 5.0, policy: Policy | None = None) -> None:
        self.box = Sandbox.best(policy or Policy(mem_mb=512))
        self._worker = self.box.worker(_INSIDE, timeout_s=timeout_s)

    def forget(self) -> None:
        self._worker.call("forget")

    def run(self, code: str) -> tuple[str, bool]:
        """What the code printed, or its error as text, cut to `SHOWN` letters; and whether it ran."""
        answer = self._worker.call("run", code)
        text = str(answer.value) if answer.ok else answer.error or answer.status.replace("_", " ")
        return text.strip()[:SHOWN], answer.ok

    def close(self) -> None:
        self._worker.close()

    def __enter__(self) -> CodeRunner:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def worth(example: CodedAnswer) -> str | None:
    """What a tool would help with: numeric, data or factual; None where none would."""
    text = plain(example.answer)
    if _EQUATION.search(text) or len(numbers(example.question)) >= 2 <= len(numbers(text)):
        return "numeric"
    if _DATA.search(example.question):
        return "data"
    return "factual" if _FACT.search(example.question) else None


def equations(example: CodedAnswer) -> str | None:
    """Before the value of every equation in the answer, a program that computes its left side."""
    text, made, last = example.answer, "", 0
    for found in _EQUATION.finditer(text):
        code = _program(found[1])
        if code is not None:
            made += text[last : found.end()] + f"{OPEN}print({code}){CLOSE}"
            last = found.end()
    return made + text[last:] if last else None


def _program(expression: str) -> str | None:
    """An expression of arithmetic as Python; None for anything else."""
    plain_ = re.sub(r"(\d[\d.]*)\s*%", r"(\1 / 100)", expression.replace("$", "").replace(",", ""))
    code = " ".join(re.sub("[x×]", "*", plain_).replace("÷", "/").split())
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError:
        return None
    known = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
    if not all(isinstance(node, known) for node in ast.walk(tree)) or not isinstance(tree.body, ast.BinOp):
        return None
    return f"round({code}, 6)" if "/" in code or "." in code else code


@dataclass
class ModelInserter:
    """A model rewrites the answer; a rewrite that changes its words is refused.

    Args:
        ask: prompt → text, as a pipeline or any function.
    """

    ask: Callable[[str], str]

    def __call__(self, example: CodedAnswer) -> str | None:
        said = self.ask(
            f"Put Python where a calculation or a look-up helps, as {OPEN}code that prints{CLOSE}, right before what "
            f"it finds. Change nothing else.\nQuestion: {example.question}\nAnswer: {example.answer}\nRewritten:"
        )
        try:
            same = " ".join(plain(said).split()) == " ".join(example.answer.split())
        except DataError:
            return None
        return said.strip() if same and OPEN in said else None


def executed(answer: str, runner: CodeRunner) -> tuple[str, bool]:
    """The answer with the result of each piece of code behind it, and whether all ran. Old results are replaced."""
    runner.forget()
    made, well = [], True
    for piece in pieces(answer):
        if piece.kind == "result":
            continue
        made.append(piece)
        if piece.kind == "code":
            text, ran = runner.run(piece.text)
            made.append(Piece("result", text))
            well &= ran
    return written(made), well


def computes(code: str) -> bool:
    """Whether code does more than print what stands in it."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    works = (ast.BinOp, ast.Compare, ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") not in ("print", "str")]
    return bool(calls) or any(isinstance(node, works) for node in ast.walk(tree))


def agrees(result: str, after: str) -> bool:
    """Whether the text behind a result says the same: its first number, rounded as it is there, or the same words."""
    found = numbers(result)
    if found:
        ahead = re.search(r"-?\d[\d,]*(?:\.\d+)?", after[:_AHEAD])
        if ahead is None:
            return False
        shown = ahead[0].replace(",", "")
        places = len(shown.partition(".")[2])
        return abs(found[-1] - float(shown)) <= 0.5 * 10**-places * (1 + 1e-9) if places else found[-1] == float(shown)
    words = " ".join(result.lower().split())
    return bool(words) and words in " ".join(after[:200].lower().split())


def why_not(answer: str, ran: bool, example: CodedAnswer) -> str | None:
    """Why an executed answer is not kept, in a few words; None when it is."""
    parts = pieces(answer)
    if not ran:
        return "the code failed"
    for at, piece in enumerate(parts):
        if piece.kind != "result":
            continue
        if not piece.text:
            return "nothing was printed"
        if not computes(parts[at - 1].text):
            return "the code computes nothing"
        after = "".join(part.text for part in parts[at + 1 :] if part.kind == "text")
        if not agrees(piece.text, after):
            return "the text does not agree"
    final = comes_to(answer)
    if example.gold is not None and not reaches(answer, example.gold):
        return "another answer than the known one"
    if example.samples and 2 * sum(sample == final for sample in example.samples) < len(example.samples):
        return "other solutions disagree"
    return None


def bridged(
    examples: Iterable[CodedAnswer], inserter: Inserter, runner: CodeRunner, *, most: int | None = None
) -> tuple[list[CodedAnswer], Counter[str]]:
    """Rows with code and results, and how many rows went which way.

    Args:
        most: rows of one category at most. Rows with code already are executed and filtered like the others.
    """
    kept: list[CodedAnswer] = []
    fate: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    for example, category, text in _proposed(examples, inserter, fate):
        answer, ran = executed(text, runner)
        reason = why_not(answer, ran, example)
        key = (" ".join(example.question.lower().split()), *(p.text for p in pieces(answer) if p.kind == "code"))
        if reason is None and key in seen:
            reason = "a duplicate"
        if reason is None and most is not None and fate[f"kept {category}"] >= most:
            reason = "enough of its category"
        seen.add(key)
        fate[reason or f"kept {category}"] += 1
        if reason is None:
            kept.append(replace(example, answer=answer))
    return kept, fate


def _proposed(
    examples: Iterable[CodedAnswer], inserter: Inserter, fate: Counter[str]
) -> Iterator[tuple[CodedAnswer, str, str]]:
    for example in examples:
        category = worth(example)
        if category is None:
            fate["no tool would help"] += 1
            continue
        text = example.answer if OPEN in example.answer else inserter(example)
        if text is None:
            fate["no place for code"] += 1
            continue
        yield example, category, text
