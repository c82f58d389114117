"""`tool_use.toolbridge`: write code where it helps, and go on from its result (Jin et al. 2024, ToolBridge).

Rows without code get it first: select, insert, execute, filter (`bridge`). Text and code carry the loss; results do
not, they come from the interpreter. Rows are encoded piece by piece, as they are fed when the model is served.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.tool_use.interleaved import CLOSE, ENDED, OPEN, RESULT, TEMPLATES, CodedAnswer, comes_to, prompt, reaches
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.figures import mean_interval
from core.evaluation.report import Report
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class ToolBridgeConfig:
    """Options of `tool_use.toolbridge`."""

    template: str = key("plain", "prompt template", one_of=TEMPLATES)
    mode: Literal["pieces"] = key("pieces", "segments are tokenised one by one, as results are appended in serving")
    insert: Literal["equations", "none"] = key("equations", "who writes code into answers without any")
    rows: int = key(0, "rows of one category at most; 0 for all", least=0)
    timeout_s: float = key(5.0, "of one piece of code", above=0)


@method("tool_use.toolbridge", config=ToolBridgeConfig)
def toolbridge(ctx: StageContext) -> Stage:
    """Rows with code and results, of the examples that the filter keeps."""
    from apps.tool_use.bridge import CodeRunner, bridged, equations
    from apps.tool_use.interleaved import row_of
    from core.training.callbacks import say
    from core.training.stage import Stage

    options = ctx.options
    inserter = equations if options.insert == "equations" else lambda example: None
    with CodeRunner(options.timeout_s) as runner:
        kept, fate = bridged(ctx.train, inserter, runner, most=options.rows or None)
        held, _ = bridged(ctx.eval or (), inserter, runner)
    if ctx.run is not None:
        say(ctx.run, f"code in {len(kept)} of {sum(fate.values())} answers: {dict(fate.most_common())}")
    if not kept:
        raise DataError(f"no answer is kept: {dict(fate)}", hint="rows with code in them, or with equations")
    rows, eval_rows = ([row_of(example, options.template) for example in part] for part in (kept, held))
    return Stage(rows=rows, eval_rows=eval_rows, mode="pieces")


@dataclass(frozen=True)
class BridgeConfig(PipelineConfig):
    """Args:
    most: runs of code in one answer at most. timeout_s: of one of them.
    """

    template: str | None = "plain"
    mode: Literal["offsets", "pieces"] = "pieces"
    most: int = 8
    timeout_s: float = 5.0


class BridgePipeline(BasePipeline):
    """`answer("question")` writes text with code, runs the code, and goes on; `meta["runs"]` lists code and results."""

    app = "tool_use"
    example_cls = CodedAnswer
    default_template = "plain"
    config_cls = BridgeConfig
    from_training = ("template", "mode", "timeout_s")
    config: BridgeConfig

    def __init__(self, engine: Any, tokenizer: Any, config: Any = None) -> None:
        from apps.tool_use.code_engine import CodeEngine

        config = config or self.config_cls()
        if tokenizer is not None and not isinstance(engine, CodeEngine):
            engine = CodeEngine(engine, most=config.most, timeout_s=config.timeout_s)
        super().__init__(engine, tokenizer, config)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, **config: Any) -> Any:
        """Serve a model that is already in memory, its keys and values kept from one run to the next."""
        from core.inference.engines.prefix import PrefixEngine

        return cls(PrefixEngine(model, tokenizer), tokenizer, cls._config(config))

    def to_example(self, given: Any, **fields: Any) -> CodedAnswer:
        if isinstance(given, str):
            return CodedAnswer(given, fields.get("answer", ""), fields.get("gold"))
        return super().to_example(given)

    def prepare(self, example: CodedAnswer) -> Request:
        template = self.config.template or "plain"
        request = self.request([prompt(example.question, template)])
        return dataclasses.replace(request, stop=(TEMPLATES[template][2],))

    def finish(self, request: Request, output: Output) -> Result:
        from apps.tool_use.interleaved import pieces

        try:
            parts = pieces(output.text)
        except DataError as error:
            return Result(output.text.strip(), {"runs": [], "answer": comes_to(output.text), "notes": [error.what]})
        behind = zip(parts, parts[1:])
        runs = [{"code": a.text, "result": b.text} for a, b in behind if (a.kind, b.kind) == ("code", "result")]
        return Result(output.text.strip(), {"runs": runs, "answer": comes_to(output.text), "notes": []})

    def target_text(self, target: str) -> str:
        return TEMPLATES[self.config.template or "plain"][1] + target

    def predict(self, examples: Sequence[Any], **gen: Any) -> list[str]:
        return [result.text for result in self.batch(examples, **gen)]


class NumericEvaluator(BaseEvaluator):
    """Whether answers come to the known value, and how often code ran on the way. Predictions are texts."""

    name = "tool_use"
    primary = "exact_match"
    known = ("exact_match", "with_code", "code_failed")

    def score(self, predictions: Sequence[str], examples: Sequence[CodedAnswer]) -> Report:
        self.check(predictions, examples)
        counted = [(text, example) for text, example in zip(predictions, examples) if example.gold is not None]
        if not counted:
            raise DataError("no example has a known answer", field="gold")
        rows = [self._row(text, example) for text, example in counted]
        metrics = {name: mean_interval([row[name] for row in rows]) for name in self.metrics}
        fates = Counter("right" if row["exact_match"] else "wrong" for row in rows)
        signature = {"without a known answer": len(examples) - len(counted), **fates}
        wrong = [row for row in rows if not row["exact_match"]]
        return Report(self.name, metrics, signature, rows, wrong[:20], self.metrics[0])

    @staticmethod
    def _row(text: str, example: CodedAnswer) -> dict[str, Any]:
        try:
            right = reaches(text, str(example.gold))
        except DataError:
            right = False
        failed = any("Error" in part.partition(ENDED)[0] for part in text.split(RESULT)[1:])
        return {
            "input": example.question,
            "reference": example.gold,
            "prediction": text,
            "exact_match": 100.0 * right,
            "with_code": 100.0 * (OPEN in text and CLOSE in text),
            "code_failed": 100.0 * failed,
        }
