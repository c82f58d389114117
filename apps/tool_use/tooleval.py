"""ToolEval (Qin et al. 2023, ToolLLM): pass rate and win rate, by a judge that is asked several times.

A system's answer passes when it ended with Finish and either is judged to solve its task, or the task is judged
unsolvable. It is judged `votes` times and the majority counts; a tie is broken by a coin with a seed. Which of two
answers is better is asked in both orders, so that a judge who likes the first place gains nothing.
Judges are never mixed: a report names its judge, and judgements of another one are refused.

    python -m apps.tool_use.tooleval answers.jsonl --judgements judged.jsonl [--against reference.jsonl]

needs no model: the judgements are a recording, written by `Judge.record`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import BackendUnavailable, DataError
from core.evaluation.report import Metric, Report

PASS: dict[tuple[str, str], str] = {
    ("solved", "solvable"): "pass", ("solved", "unsolvable"): "pass", ("solved", "unsure"): "pass",
    ("unsolved", "solvable"): "fail", ("unsolved", "unsolvable"): "pass", ("unsolved", "unsure"): "unsure",
    ("unsure", "solvable"): "unsure", ("unsure", "unsolvable"): "unsure", ("unsure", "unsure"): "unsure",
}  # fmt: skip
QUESTIONS = {
    "solved": "Task:\n{query}\n\nAnswer:\n{answer}\n\nDoes the answer solve the task? Answer with one word: solved, "
              "unsolved or unsure.\nVerdict:",
    "solvable": "Task:\n{query}\n\nTools:\n{tools}\n\nCan the task be solved with these tools, as it is stated? Answer "
                "with one word: solvable, unsolvable or unsure.\nVerdict:",
    "better": "Task:\n{query}\n\nFirst answer, with the calls that led to it:\n{first}\n\nSecond answer, with its "
              "calls:\n{second}\n\nWhich is better? Answer with one word: first, second or tie.\nVerdict:",
}  # fmt: skip
WORDS = {
    "solved": ("solved", "unsolved", "unsure"), "solvable": ("solvable", "unsolvable", "unsure"),
    "better": ("first", "second", "tie"),
}  # fmt: skip


@dataclass(frozen=True)
class Answered:
    """A system's answer to a task.

    Args:
        steps: its calls with what came back, {"name", "arguments", "observation"}; the last should be Finish.
        tools: names and descriptions of what was offered, as text.
    """

    id: str
    query: str
    answer: str
    steps: tuple[Mapping[str, Any], ...] = ()
    tools: str = ""

    @property
    def finished(self) -> bool:
        return bool(self.steps) and self.steps[-1].get("name") == "Finish"

    def shown(self) -> str:
        """The calls and the answer, as a judge reads them."""
        lines = []
        for step in self.steps:
            arguments = json.dumps(step.get("arguments", {}), ensure_ascii=False)
            lines.append(f"{step['name']}({arguments}) -> {step.get('observation', '')}")
        return "\n".join([*lines, f"Answer: {self.answer}"])


def answered(result: Any, id: str) -> Answered:
    """From a `ToolUsePipeline` result."""
    trace = result.meta["trace"]
    steps = list(result.meta["calls"])
    if result.meta["finish"] in ("answer", "gave_up"):
        steps.append({"name": "Finish", "arguments": {}, "observation": ""})
    tools = "\n".join(f"{t['function']['name']}: {t['function']['description']}" for t in trace["tools"])
    return Answered(id, trace["query"], result.text, tuple(steps), tools)


def read_answers(path: str | Path) -> list[Answered]:
    """JSONL of {"id", "query", "answer", "steps", "tools"}. Raises `DataError` with the line."""
    found, seen = [], set()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the answers: {error}", file=path) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            steps = tuple(row.get("steps", ()))
            if any(not isinstance(step, Mapping) or "name" not in step for step in steps):
                raise DataError("a step has a name", file=path, line=number, field="steps")
            made = Answered(str(row["id"]), row["query"], row.get("answer", ""), steps, row.get("tools", ""))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError("not an answer", file=path, line=number, got=line, expected='{"id", "query", …}') from error
        if made.id in seen:
            raise DataError("two answers to one task", file=path, line=number, field="id", got=made.id)
        seen.add(made.id)
        found.append(made)
    if not found:
        raise DataError("there are no answers", file=path)
    return found


class Judge:
    """Asks `model(prompt) -> text`, each question `votes` times, and keeps what was said.

    Args:
        name: who judges; it stands in every report. kept: earlier judgements, question key → the words given.
        seed: of the coin that breaks a tie.
    """

    def __init__(
        self, model: Callable[[str], str] | None, name: str, *, votes: int = 4, seed: int = 0,
        kept: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.name, self.votes, self.seed = model, name, votes, seed
        self.kept: dict[str, list[str]] = {key: list(words) for key, words in (kept or {}).items()}

    @classmethod
    def replayed(cls, path: str | Path, **options: Any) -> Judge:
        """A judge from recorded judgements alone. Raises `DataError` for a bad line, or for two judges in one file."""
        names, kept = set(), {}
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read the judgements: {error}", file=path) from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                names.add(row["judge"])
                kept[row["key"]] = list(row["words"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError("not a judgement", file=path, line=number, got=line) from error
        if len(names) != 1:
            raise DataError("the judgements are not of one judge", file=path, got=sorted(names))
        return cls(None, names.pop(), kept=kept, **options)

    def record(self, path: str | Path) -> None:
        """Write all judgements, whole or not at all."""
        from core.config.files import write_text

        rows = ({"judge": self.name, "key": key, "words": words} for key, words in self.kept.items())
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def said(self, kind: str, **fields: str) -> list[str]:
        """The judge's words for a question, one a vote; an answer without a known word counts as the last of them."""
        prompt = QUESTIONS[kind].format(**fields)
        words = self.kept.setdefault(hashlib.sha256(prompt.encode()).hexdigest()[:24], [])
        while len(words) < self.votes:
            if self.model is None:
                hint = "record the judgements of these answers"
                raise BackendUnavailable(f"{self.name} said nothing on this: {prompt[-200:]!r}", hint=hint)
            words.append(word_of(self.model(prompt), WORDS[kind]))
        return words[: self.votes]

    def passes(self, answer: Answered) -> str:
        """pass, fail or unsure."""
        if not answer.finished:
            return "fail"
        solved = self.said("solved", query=answer.query, answer=answer.shown())
        solvable = self.said("solvable", query=answer.query, tools=answer.tools)
        return majority([PASS[pair] for pair in zip(solved, solvable)], f"{self.seed}:{answer.id}")

    def prefers(self, mine: Answered, theirs: Answered) -> str:
        """win, lose or tie for `mine`: the judge's choice when it is the same in both orders."""
        orders = ((mine, theirs), (theirs, mine))
        one, two = (
            majority(self.said("better", query=mine.query, first=a.shown(), second=b.shown()), f"{self.seed}:{mine.id}")
            for a, b in orders
        )
        if (one, two) == ("first", "second"):
            return "win"
        return "lose" if (one, two) == ("second", "first") else "tie"


def word_of(text: str, words: Sequence[str]) -> str:
    """The first of `words` in a judge's answer, as a whole word; else the last of them."""
    said = [part.strip(".,:;!'\"`*()").lower() for part in text.split()]
    return next((part for part in said if part in words), words[-1])


def majority(words: Sequence[str], seed: str) -> str:
    """The most frequent word; of several, one by a coin that the seed decides."""
    counts = Counter(words)
    most = sorted(word for word, count in counts.items() if count == max(counts.values()))
    return most[0] if len(most) == 1 else random.Random(seed).choice(most)


def score(answers: Sequence[Answered], judge: Judge, against: Sequence[Answered] | None = None) -> Report:
    """Pass rate, and with a reference system's answers the win rate, in percent.

    A win counts one and a tie half. Where one of two answers passes and the other fails, the first wins unasked.

    Raises:
        DataError: a task that the reference system has not answered.
    """
    rows: list[dict[str, Any]] = []
    others = {answer.id: answer for answer in against or ()}
    missing = [answer.id for answer in answers if against is not None and answer.id not in others]
    if missing:
        raise DataError("the reference system has no answer to a task", field="id", got=missing[0])
    for answer in answers:
        row = {"id": answer.id, "input": answer.query, "prediction": answer.answer, "verdict": judge.passes(answer)}
        if against is not None:
            other = others[answer.id]
            both = (row["verdict"], judge.passes(other))
            known = {("pass", "fail"): "win", ("fail", "pass"): "lose"}.get(both)
            row |= {"reference": other.answer, "against": both[1], "outcome": known or judge.prefers(answer, other)}
        rows.append(row)
    verdicts = Counter(row["verdict"] for row in rows)
    metrics = {"pass_rate": Metric(100.0 * verdicts["pass"] / len(rows), len(rows), unit="%")}
    if against is not None:
        outcomes = Counter(row["outcome"] for row in rows)
        won = outcomes["win"] + 0.5 * outcomes["tie"]
        metrics["win_rate"] = Metric(100.0 * won / len(rows), len(rows), unit="%")
        metrics["reference_pass_rate"] = Metric(_share(row["against"] for row in rows), len(rows), unit="%")
    signature = {"judge": judge.name, "votes": judge.votes, "seed": judge.seed, "verdicts": dict(verdicts)}
    return Report(
        "tooleval", metrics, signature, rows, [row for row in rows if row["verdict"] != "pass"][:20], "pass_rate"
    )


def _share(verdicts: Iterable[str]) -> float:
    found = list(verdicts)
    return 100.0 * found.count("pass") / len(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: score answers by recorded judgements."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.tool_use.tooleval", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("answers", help='JSONL of {"id", "query", "answer", "steps", "tools"}')
    parser.add_argument("--judgements", required=True, help="JSONL that Judge.record wrote")
    parser.add_argument("--against", help="answers of a reference system, for the win rate")
    parser.add_argument("--votes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the coin that breaks ties")
    parser.add_argument("--out", help="folder for report.json and predictions.jsonl")
    options = parser.parse_args(arguments)
    from core.errors import GraftError

    try:
        judge = Judge.replayed(options.judgements, votes=options.votes, seed=options.seed)
        against = read_answers(options.against) if options.against else None
        report = score(read_answers(options.answers), judge, against)
    except GraftError as error:
        print(error, file=sys.stderr)
        return 2
    print(report.table())
    print(f"judge: {judge.name}, {judge.votes} votes")
    if options.out:
        report.save(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
