"""Whether a model called the right tool rightly: the leaderboard's verdicts, and where calls go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from apps.tool_use import schema
from apps.tool_use.ast_check import AstVerdict, check
from apps.tool_use.calls import form_of, parse
from apps.tool_use.data import ToolExample, wanted
from apps.tool_use.executed import Episode, World
from core.errors import BackendUnavailable
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.figures import mean_interval
from core.evaluation.report import Metric, Report


class ToolUseEvaluator(BaseEvaluator):
    """Predictions are texts with calls; option `form` (json, hermes, python) is else told from each text."""

    name = "tool_use"
    primary = "ast_accuracy"
    known = ("ast_accuracy", "tool_accuracy", "readable", "schema_valid")

    def score(self, predictions: Sequence[Any], examples: Sequence[Any]) -> Report:
        """The report; of episodes, whose predictions are calls for each step of each turn, that of `StateEvaluator`."""
        self.check(predictions, examples)
        if isinstance(examples[0], Episode):
            return StateEvaluator(**self.options).score(predictions, examples)
        skipped = None
        try:
            schema.library()
        except BackendUnavailable as error:
            skipped = f"{error.what}; {error.hint}"
        rows = [self._row(text, example, skipped is None) for text, example in zip(predictions, examples)]
        metrics = {
            name: Metric(None, 0, unit="%", skipped=skipped) if name == "schema_valid" and skipped else
            mean_interval([row[name] for row in rows])
            for name in self.metrics
        }  # fmt: skip
        kinds = Counter(row["error"] for row in rows if row["error"])
        signature = {"verdicts": "BFCL v4, Python", "errors": dict(kinds.most_common())}
        worst = [row for row in rows if row["error"]][:20]
        return Report(self.name, metrics, signature, rows, worst, self.metrics[0])

    def _row(self, text: str, example: ToolExample, validates: bool) -> dict[str, Any]:
        parsed = parse(text, self.options.get("form") or form_of(text))
        expected = wanted(example)
        verdict = judge(example, parsed.calls)
        called, right = Counter(c.name for c in parsed.calls), Counter(next(iter(e)) for e in expected)
        row = {
            "input": example.query,
            "reference": str([dict(e) for e in expected])[:400],
            "prediction": text,
            "ast_accuracy": 100.0 * verdict.valid,
            "tool_accuracy": 100.0 * (called == right),
            "readable": 100.0 * (not parsed.notes and (bool(parsed.calls) or not expected)),
            "error": None if verdict.valid else verdict.error,
            "detail": verdict.detail,
        }
        if validates:
            tools = {tool.name: tool for tool in example.tools}
            fit = [c.name in tools and not schema.problem(tools[c.name], dict(c.arguments)) for c in parsed.calls]
            valid = bool(fit) and all(fit) and not parsed.notes
            row["schema_valid"] = 100.0 * (valid or (not expected and not parsed.calls))
        return row


class StateEvaluator(BaseEvaluator):
    """Predictions are, for each turn, the steps, each a list of calls; they are run beside the gold calls.

    Options: `world`, a `World` (left open); by default the leaderboard's.
    """

    name = "tool_use_state"
    primary = "state_accuracy"
    known = ("state_accuracy",)

    def score(self, predictions: Sequence[Any], examples: Sequence[Episode]) -> Report:
        self.check(predictions, examples)
        given = self.options.get("world")
        world = given or World.bfcl()
        try:
            verdicts = [world.judge(episode, turns) for turns, episode in zip(predictions, examples)]
        finally:
            if given is None:
                world.close()
        rows: list[dict[str, Any]] = [
            {"input": e.query, "prediction": str(p), "reference": str(e.expected), "state_accuracy": 100.0 * v.valid,
             "error": v.error, "turn": v.turn, "detail": v.detail}
            for p, e, v in zip(predictions, examples, verdicts)
        ]  # fmt: skip
        kinds = Counter(v.error for v in verdicts if v.error)
        signature = {"verdicts": "BFCL v4, multi-turn state and responses", "errors": dict(kinds.most_common())}
        metrics = {"state_accuracy": mean_interval([row["state_accuracy"] for row in rows])}
        return Report(self.name, metrics, signature, rows, [row for row in rows if row["error"]][:20], self.primary)


def judge(example: ToolExample, calls: Sequence[Any]) -> AstVerdict:
    """The leaderboard's verdict; where no call is expected, none may be made."""
    expected = wanted(example)
    if not expected:
        return AstVerdict(not calls, None if not calls else "irrelevance_error:calls", "no tool answers this")
    return check(example.tools, calls, expected, example.category)
