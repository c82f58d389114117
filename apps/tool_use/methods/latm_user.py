"""`tool_use.latm`: a small model learns to call a made tool (Cai et al. 2023, LATM).

The tool comes from a store, made and verified before. Calls that are learnt are run first: only those that get their
question's answer from the tool are kept. The evaluator runs calls in the same way, and never loads a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.tool_use.methods.latm import code_of, use_prompt
from apps.tool_use.problems import Problem
from apps.tool_use.tool_store import Bench, Tried
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment
from core.errors import AppInputError, DataError
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.figures import mean_interval
from core.evaluation.report import Report
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class LatmConfig:
    """Options of `tool_use.latm`."""

    worked: int = key(1, "worked calls of the tool in the prompt, at most", least=0)


@method("tool_use.latm", config=LatmConfig)
def latm(ctx: StageContext) -> Stage:
    """Rows of the tool, its worked calls and a question as given, and the call as learnt."""
    from core.training.callbacks import say
    from core.training.stage import Stage

    def rows(problems: Iterable[Problem]) -> tuple[list[list[Segment]], Counter[str]]:
        made, fate = [], Counter[str]()
        known = [problem for problem in problems if problem.code is not None]
        for problem, tried in zip(known, tried_all(known, [str(problem.code) for problem in known])):
            fate["kept" if tried.right else tried.error.partition(":")[0]] += 1
            if tried.right:
                prompt = use_prompt(problem.tool, problem.question, ctx.options.worked)
                made.append([Segment(prompt), Segment(str(problem.code).strip(), "assistant", True)])
        return made, fate

    train, fate = rows(ctx.train)
    if not train:
        raise DataError(f"no call is kept: {dict(fate)}", hint="rows have code that sets ans to the answer")
    if ctx.run is not None:
        say(ctx.run, f"calls that get their answer: {dict(fate.most_common())}")
    return Stage(rows=train, eval_rows=rows(ctx.eval or ())[0])


def tried_all(problems: Sequence[Problem], codes: Sequence[str]) -> list[Tried]:
    """What each code comes to with its problem's tool; one warm sandbox a tool."""
    found: dict[int, Tried] = {}
    by_tool: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        by_tool.setdefault(problem.tool.hash, []).append(index)
    for indices in by_tool.values():
        tool = problems[indices[0]].tool
        with Bench(tool.source, tool.timeout_s) as bench:
            found.update((i, bench.run(codes[i], problems[i].answer)) for i in indices)
    return [found[index] for index in range(len(problems))]


@dataclass(frozen=True)
class ToolUserConfig(PipelineConfig):
    """Args:
    worked: calls of the tool in the prompt, as in training.
    """

    worked: int = 1


class ToolUserPipeline(BasePipeline):
    """`use("question", tool=made)` writes the call of a made tool; it runs nothing, `methods.latm.ToolUser` does."""

    app = "tool_use"
    example_cls = Problem
    config_cls = ToolUserConfig
    config: ToolUserConfig
    from_training = ("worked",)

    def to_example(self, given: Any, **fields: Any) -> Problem:
        if isinstance(given, str) and "tool" in fields:
            return Problem(given, fields.get("answer", ""), fields["tool"])
        return super().to_example(given)

    def prepare(self, example: Problem) -> Request:
        if not example.question.strip():
            raise AppInputError("the question is empty")
        return self.request([Segment(use_prompt(example.tool, example.question, self.config.worked))])

    def finish(self, request: Request, output: Output) -> Result:
        return Result(code_of(output.text).strip())


class CodeEvaluator(BaseEvaluator):
    """Predictions are calls as Python; each runs with its problem's tool in the sandbox."""

    name = "tool_use_latm"
    primary = "solved"
    known = ("solved", "runs")

    def score(self, predictions: Sequence[str], examples: Sequence[Problem]) -> Report:
        self.check(predictions, examples)
        tried = tried_all(examples, [code_of(text) for text in predictions])
        rows: list[dict[str, Any]] = [
            {"input": e.question, "prediction": p, "reference": e.answer, "solved": 100.0 * t.right,
             "runs": 100.0 * (t.value is not None), "error": t.error, "seconds": round(t.seconds, 4)}
            for p, e, t in zip(predictions, examples, tried)
        ]  # fmt: skip
        slowest = max(row["seconds"] for row in rows)
        signature = {"answers": "number, text or list", "isolation": "sandbox", "slowest call, s": slowest}
        metrics = {name: mean_interval([row[name] for row in rows]) for name in self.metrics}
        return Report(self.name, metrics, signature, rows, [r for r in rows if r["error"]][:20], self.metrics[0])
