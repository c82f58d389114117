"""An operator in, CUDA kernels out: compiled, checked on many inputs, timed, and searched for faster ones.

    pipe = CudaPipeline.from_pretrained("runs/fsr/42", rounds=10, samples=5)
    found = pipe.search(reference_source)
    found.source, found.verdict.meaning, found.verdict.timing

A call answers like every pipeline; `search` also checks the answers and shows the model the best and the failing ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from apps.cuda import prompts
from apps.cuda.evaluator import CudaEvaluator
from apps.cuda.example import CudaExample, example_from
from apps.cuda.source import LARGEST, extract
from core.data.segments import prompt_segments, render
from core.errors import AppInputError, DataError, nearest
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result, SamplingParams

if TYPE_CHECKING:
    from apps.cuda.harness import CudaHarness
    from apps.cuda.verdict import CudaVerdict
    from core.inference.refine import Candidate, LoopEvent

_FIELDS = tuple(CudaExample.__dataclass_fields__)


@dataclass(frozen=True)
class CudaConfig(PipelineConfig):
    """Settings of a CUDA pipeline.

    Args:
        template: prompt template; it must be the one of training.
        archs, trials, gpu, sandbox: of the verdict, as in `CudaHarness`.
        rounds, samples: of `search`. patience: rounds without a faster kernel after which it ends.
    """

    template: str | None = "plain"
    max_new_tokens: int = 1024
    archs: tuple[str, ...] = ("sm_90",)
    trials: int = 6
    gpu: Literal["auto", "none", "require"] = "auto"
    sandbox: Literal["strict", "medium", "weak"] = "strict"
    rounds: int = 10
    samples: int = 5
    patience: int | None = None


@dataclass(frozen=True)
class CudaResult:
    """What `search` found.

    Args:
        source: the best candidate, plan and kernels in one text. verdict: on it; None where there was none.
        trace: every candidate in order. isolation: what held them. engine: the emulator, or a GPU's name.
    """

    source: str
    verdict: CudaVerdict | None
    trace: tuple[Candidate, ...] = ()
    isolation: str = ""
    engine: str = ""

    @property
    def stage(self) -> str:
        return self.verdict.stage if self.verdict else "policy"

    def to_dict(self) -> dict[str, Any]:
        rows = [{"text": c.text, "round": c.round, "stage": c.verdict.stage, "score": c.verdict.score,
                 "ms": c.verdict.metrics.get("ms"), "feedback": c.verdict.feedback} for c in self.trace]  # fmt: skip
        verdict = self.verdict.to_dict() if self.verdict else None
        return {"source": self.source, "verdict": verdict, "trace": rows, "isolation": self.isolation,
                "engine": self.engine}  # fmt: skip


class CudaPipeline(BasePipeline):
    """Give a PyTorch module as source text, a dictionary, or a `CudaExample`; `spec=`, `sizes=` as arguments."""

    app = "cuda"
    example_cls = CudaExample
    templates = prompts.TEMPLATES
    default_template = "plain"
    evaluator_cls = CudaEvaluator
    config_cls = CudaConfig
    config: CudaConfig

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Self:
        """As every pipeline; "embedded" is a recorded search over a few operators: the shipped model writes no CUDA."""
        if str(path) != "embedded":
            return super().from_pretrained(path, **options)
        from apps.cuda.recorded import RecordedEngine

        fields = {name: value for name, value in options.items() if name in cls.config_cls.__dataclass_fields__}
        return cls(RecordedEngine(), None, cls._config({"template": "search", "rounds": 5, "samples": 1, **fields}))

    def to_example(self, given: Any, **fields: Any) -> CudaExample:
        """An example from what a user passes.

        Raises:
            AppInputError: not an input, an unknown argument, or a reference that does not define what it must.
        """
        for name in fields:
            if name not in _FIELDS:
                known = (*_FIELDS, *SamplingParams.__dataclass_fields__)
                raise AppInputError(f"unknown argument '{name}'", hint=nearest(name, known) or f"known: {known}")
        if isinstance(given, CudaExample):
            return given
        if not isinstance(given, (str, Mapping)):
            raise AppInputError(
                f"cannot write CUDA for {type(given).__name__}", hint="give source text, a dictionary or a CudaExample"
            )
        row = {"reference": given, **fields} if isinstance(given, str) else {**given, **fields}
        for name in ("reference", "solution"):
            if len(row.get(name) or "") > LARGEST:
                raise AppInputError(f"the {name} has {len(row[name])} characters", hint=f"the limit is {LARGEST}")
        try:
            return example_from({name: value for name, value in row.items() if value is not None})
        except DataError as error:
            raise AppInputError(error.what, where=error.where, hint=error.hint) from error

    def prepare(self, example: CudaExample) -> Request:
        """The prompt. Raises `AppInputError` when it leaves no room in the model's context."""
        template = prompts.get_template(self.config.template or self.default_template)
        segments = prompt_segments(render(template, prompts.fields(example)))
        return self._checked(self.request(segments, example=example))

    def _checked(self, request: Request) -> Request:
        limit = getattr(self.engine, "context", None)
        if limit is not None and len(request.ids) + 8 > limit:
            raise AppInputError(
                f"the operator is too long: {len(request.ids)} tokens, and the model's limit is {limit}",
                hint="shorten the reference, or take the template 'words' with a spec",
            )
        return request

    def finish(self, request: Request, output: Output) -> Result:
        """The model's text; the kernels and the launch plan in it are `meta["code"]` and `meta["plan"]`."""
        code, plan = extract(output.text)
        warnings = [] if code else ["the answer holds no kernel"]
        if output.finish_reason == "length":
            warnings.append("the output was cut at max_new_tokens")
        return Result(output.text, {"code": code, "plan": plan, "warnings": warnings})

    def predict(self, examples: Sequence[Any], *, samples: int = 1, **gen: Any) -> list[Any]:
        """An answer to each example, or several: `samples=20, temperature=0.85, top_p=0.95`."""
        return super().predict(examples, **gen) if samples == 1 else self.draw(examples, samples, **gen)

    def target_text(self, target: str) -> str:
        return target

    # ---- checked answers ---------------------------------------------------------------------------------------

    def harness(self) -> CudaHarness:
        """The judge that the configuration asks for, made once."""
        if getattr(self, "_harness", None) is None:
            from apps.cuda.harness import CudaHarness

            config = self.config
            self._harness = CudaHarness(archs=config.archs, trials=config.trials, gpu=config.gpu, level=config.sandbox)
        return self._harness

    def attempts(self, given: Any, *, rounds: int | None = None, samples: int | None = None, seed: int = 0,
                 trace: Any = None, **fields: Any) -> Iterator[LoopEvent]:  # fmt: skip
        """The events of the search over one operator, every candidate as it is checked."""
        from apps.cuda.search import search_loop
        from core.inference.refine import EngineGenerator

        sampling, extra = self._split(fields)
        example = self.to_example(given, **extra)

        def fits(prompt: str) -> str:
            if self.tokenizer is not None:
                self._checked(Request(self.tokenizer(prompt)["input_ids"], prompt))
            return prompt

        loop = search_loop(
            EngineGenerator(self.engine, self.tokenizer), self.harness(), samples=samples or self.config.samples,
            rounds=rounds or self.config.rounds, patience=self.config.patience, sampling=sampling, seed=seed,
            first=self.config.template or "plain", fits=fits, trace=trace,
        )  # fmt: skip
        yield from loop.run(example)

    def search(self, given: Any, **fields: Any) -> CudaResult:
        """Write, check, time, and again: `search(reference, rounds=10, samples=5)`."""
        from apps.cuda.search import fastest

        candidates: Sequence[Candidate] = [
            e.candidate for e in self.attempts(given, **fields) if e.kind == "verified" and e.candidate is not None
        ]
        best = fastest(candidates)
        harness = self.harness()
        found = None if best is None else best.verdict.artifacts.get("verdict")
        return CudaResult(best.text if best else "", found, tuple(candidates), harness.level, harness.engine)
