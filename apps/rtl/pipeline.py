"""A specification in, Verilog out, checked and repaired where there is something to check it with.

    pipe = RtlPipeline.from_pretrained("runs/itertl/42", repair_rounds=2)
    out = pipe.solve(spec="An 8-bit counter …", header="module counter (…);")
    out.code, out.verdict.meaning

A call answers like every pipeline; `solve` also runs the verdict and shows the model what went wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from apps.rtl import prompts
from apps.rtl.answers import METRICS
from apps.rtl.evaluator import RtlEvaluator
from apps.rtl.example import RtlExample, completed, example_from
from apps.rtl.source import LARGEST, extract, module_names
from core.data.segments import prompt_segments, render
from core.errors import AppInputError, DataError, nearest
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result, SamplingParams

if TYPE_CHECKING:
    from apps.rtl.harness import RtlHarness
    from apps.rtl.verdict import RtlVerdict
    from core.inference.refine import Candidate, LoopEvent

_FIELDS = tuple(RtlExample.__dataclass_fields__)


@dataclass(frozen=True)
class RtlConfig(PipelineConfig):
    """Settings of an RTL pipeline.

    Args:
        template: prompt template; it must be the one of training.
        mode, engine, sandbox: of the verdict, as in `RtlHarness`. sim_timeout_s: seconds of a simulation.
        repair_rounds: how often `solve` shows the model what went wrong. samples: answers a round.
    """

    template: str | None = "spec"
    max_new_tokens: int = 512
    verdict: Literal["strict", "v1", "v2", "rtllm"] = "strict"
    simulator: Literal["auto", "iverilog", "verilator"] = "auto"
    sandbox: Literal["strict", "medium", "weak"] = "strict"
    sim_timeout_s: float = 30.0
    repair_rounds: int = 2
    samples: int = 1


@dataclass(frozen=True)
class RtlResult:
    """What `solve` found.

    Args:
        code: the best attempt. verdict: on it; None where nothing could be checked. trace: every attempt in order.
        isolation: what held the simulation.
    """

    code: str
    verdict: RtlVerdict | None
    trace: tuple[Candidate, ...] = ()
    isolation: str = ""

    @property
    def diagnostics(self) -> tuple:
        return self.verdict.diagnostics if self.verdict else ()

    @property
    def waveform(self) -> bytes | None:
        """The value change dump of the best attempt."""
        return self.verdict.wave if self.verdict else None

    def ppa(self) -> Any:
        """Cells, flip-flops and depth of the code by yosys."""
        from apps.rtl.ppa import cost

        return cost(self.code)

    def to_dict(self) -> dict[str, Any]:
        attempts = [{"text": c.text, "stage": c.verdict.stage, "score": c.verdict.score,
                     "feedback": c.verdict.feedback} for c in self.trace]  # fmt: skip
        verdict = self.verdict.to_dict() if self.verdict else None
        return {"code": self.code, "verdict": verdict, "trace": attempts, "isolation": self.isolation}


class RtlPipeline(BasePipeline):
    """Give a specification as text, a dictionary, or an `RtlExample`; `header=`, `top=` and the rest as arguments."""

    app = "rtl"
    example_cls = RtlExample
    templates = prompts.TEMPLATES
    default_template = "spec"
    evaluator_cls = RtlEvaluator
    config_cls = RtlConfig
    config: RtlConfig

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Self:
        """As every pipeline; "embedded" is a recording of a few tasks, because the shipped model writes no Verilog."""
        if str(path) != "embedded":
            return super().from_pretrained(path, **options)
        from apps.rtl.recorded import RecordedEngine

        fields = {name: value for name, value in options.items() if name in cls.config_cls.__dataclass_fields__}
        return cls(RecordedEngine(), None, cls._config(fields))

    def to_example(self, given: Any, **fields: Any) -> RtlExample:
        """An example from what a user passes.

        Raises:
            AppInputError: not an input, an empty or non-ASCII-control specification, or Verilog that does not fit.
        """
        for name in fields:
            if name not in _FIELDS:
                known = (*_FIELDS, *SamplingParams.__dataclass_fields__)
                raise AppInputError(f"unknown argument '{name}'", hint=nearest(name, known) or f"known: {known}")
        if isinstance(given, RtlExample):
            return given
        if not isinstance(given, (str, Mapping)):
            raise AppInputError(
                f"cannot write Verilog for {type(given).__name__}", hint="give text, a dictionary or an RtlExample"
            )
        row = {"spec": given, **fields} if isinstance(given, str) else {**given, **fields}
        for name in ("header", "testbench", "reference"):
            if isinstance(row.get(name), str) and len(row[name]) > LARGEST:
                raise AppInputError(f"the {name} has {len(row[name])} characters", hint=f"the limit is {LARGEST}")
        try:
            return example_from({name: value for name, value in row.items() if value is not None})
        except DataError as error:
            raise AppInputError(error.what, where=error.where, hint=error.hint) from error

    def prepare(self, example: RtlExample) -> Request:
        """The prompt. Raises `AppInputError` when it leaves no room in the model's context."""
        template = prompts.get_template(self.config.template or self.default_template)
        return self._checked(self.request(prompt_segments(render(template, prompts.fields(example))), example=example))

    def _checked(self, request: Request) -> Request:
        limit = getattr(self.engine, "context", None)
        if limit is not None and len(request.ids) + 8 > limit:
            raise AppInputError(
                f"the specification is too long: {len(request.ids)} tokens, and the model's limit is {limit}",
                hint="shorten it, or leave out the header",
            )
        return request

    def finish(self, request: Request, output: Output) -> Result:
        """The model's text; the Verilog in it is `meta["code"]`, for tasks that ask for a module."""
        example: RtlExample = request.meta["example"]
        if example.task in METRICS:
            return Result(output.text.strip(), {"task": example.task})
        code = extract(output.text, example.header)
        warnings = [] if code else ["the answer holds no module"]
        if output.finish_reason == "length":
            warnings.append("the output was cut at max_new_tokens")
        meta = {"code": code, "top": example.top, "warnings": warnings}
        return Result(output.text, meta)

    def predict(self, examples: Sequence[Any], *, samples: int = 1, **gen: Any) -> list[Any]:
        """An answer to each example, or several: `samples=20, temperature=0.85, top_p=0.95`."""
        return super().predict(examples, **gen) if samples == 1 else self.draw(examples, samples, **gen)

    def target_text(self, target: str) -> str:
        return target

    # ---- checked answers ---------------------------------------------------------------------------------------

    def harness(self) -> RtlHarness:
        """The judge that the configuration asks for, made once."""
        if getattr(self, "_harness", None) is None:
            from apps.rtl.engines import Limits
            from apps.rtl.harness import RtlHarness

            config = self.config
            self._harness = RtlHarness(
                mode=config.verdict, engine=config.simulator, level=config.sandbox,
                limits=Limits(simulate_s=config.sim_timeout_s),
            )  # fmt: skip
        return self._harness

    def attempts(self, given: Any, *, rounds: int | None = None, samples: int | None = None,
                 seed: int = 0, **fields: Any) -> Iterator[LoopEvent]:  # fmt: skip
        """The events of writing, checking and repairing one specification."""
        from apps.rtl.verifier import RtlVerifier
        from core.inference.refine import EngineGenerator, RefineLoop

        sampling, extra = self._split(fields)
        example = self.to_example(given, **extra)

        def show(task: RtlExample, candidates: Sequence[Candidate]) -> str:
            name = "repair" if candidates else (self.config.template or "spec")
            wrong, words = (candidates[0].text, candidates[0].verdict.feedback) if candidates else ("", "")
            values = prompts.fields(task, extract(wrong, task.header) or wrong, words)
            segments = prompt_segments(render(prompts.get_template(name), values))
            return self._checked(self.request(segments)).text

        loop = RefineLoop(
            EngineGenerator(self.engine, self.tokenizer), RtlVerifier(self.harness()), show,
            samples=samples or self.config.samples, strategy="repair", sampling=sampling, seed=seed,
            rounds=1 + (self.config.repair_rounds if rounds is None else rounds),
        )  # fmt: skip
        yield from loop.run(example)

    def solve(self, given: Any = None, *, spec: str | None = None, **fields: Any) -> RtlResult:
        """Write, check and repair: `solve(spec=…, header=…, testbench=…, reference=…)`.

        Without a testbench an attempt is right when it compiles with the asked ports.
        """
        events = list(self.attempts(spec if given is None else given, **fields))
        best = events[-1].candidate
        trace = tuple(e.candidate for e in events if e.kind == "verified" and e.candidate is not None)
        if best is None:
            return RtlResult("", None, trace, self.harness().level)
        verdict = best.verdict.artifacts.get("verdict")
        code = verdict.code if verdict is not None else best.text
        return RtlResult(code, verdict, trace, self.harness().level)


def interface_of(code: str, top: str | None = None) -> RtlExample:
    """An example that asks for the module in `code` again: for demos and for equivalence with existing RTL."""
    name = top or (module_names(code) or ["top"])[-1]
    return completed(dataclasses.replace(RtlExample(f"The module {name}."), top=name, reference=code))
