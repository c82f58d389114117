"""Feature search and reinforcement as training (Chen et al. 2025, CUDA-LLM): ranked by compiling, right, fast.

Each iteration samples kernels with the model of the iteration before. A kernel's score grows with the furthest of the
three features that it reaches: it compiles, its outputs are right on diverse tests, and it is as fast as the row's own
solution. The ranking loss orders the model's answers by that score. Every check runs in the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.cuda import prompts
from apps.cuda.methods.sft import row_of
from core.config.limits import RANKED
from core.config.registry import method
from core.config.schema import key
from core.errors import ConfigError, DataError, nearest
from core.training.ranked_options import RankedOptions

if TYPE_CHECKING:
    from apps.cuda.example import CudaExample
    from apps.cuda.verdict import CudaVerdict
    from core.training.stage import Stage, StageContext

HARNESS = ("archs", "trials", "nearby", "gpu", "compiler", "model", "sanitize", "small", "size_limit", "seed")
"""What `verify.with` may hold: arguments of `CudaHarness`."""


BROKEN, RIGHT = 0.1, 0.6
"""Scores of an answer that does not compile, and the least of one that is right."""


@dataclass(frozen=True)
class FsrConfig(RankedOptions):
    """Options of `cuda.fsr`; `verify:` says how answers are checked, and `verify.with` is given to the harness."""

    template: str = key("plain", "prompt template", one_of=prompts.TEMPLATES)


@method("cuda.fsr", config=FsrConfig, limits=RANKED)
def fsr(ctx: StageContext) -> Stage:
    """Rows of solutions, with a trainer that adds ranked answers."""
    from core.training.stage import Stage
    from core.training.verifier_loop import ranked_trainer

    options, recipe = ctx.options, ctx.recipe
    settings = options.settings(ctx)
    examples = list(ctx.train)
    rows = [row_of(example, options.template) for example in examples]
    held = [row_of(example, options.template) for example in ctx.eval or () if example.solution]
    scorer = Scorer(examples, recipe.verify, str(ctx.run.path / "verify") if ctx.run else None)
    folder = ctx.folder / "iterations" if ctx.folder else None
    trainer = ranked_trainer(settings, ctx.tokenizer, scorer, ctx.run, folder)
    return Stage(rows=rows, eval_rows=held, layout="rows", mode=options.mode, trainer=trainer)


class Scorer:
    """Scores of (row number, answer) pairs, in [0, 1].

    Args:
        examples: the rows. verify: the recipe's block. cache: a folder of known runs.
    """

    def __init__(self, examples: Sequence[CudaExample], verify: Any, cache: str | None = None) -> None:
        if verify.name not in (None, "cuda"):
            raise ConfigError(f"unknown verifier '{verify.name}'", where="verify.name", hint="this app has: cuda")
        for name in verify.with_:
            if name not in HARNESS:
                hint = nearest(name, HARNESS) or f"known: {', '.join(HARNESS)}"
                raise ConfigError(f"the harness has no '{name}'", where=f"verify.with.{name}", hint=hint)
        self.examples, self.verify, self.cache = examples, verify, cache
        self._harness: Any = None
        self._own: dict[int, CudaVerdict] = {}

    @property
    def harness(self) -> Any:
        """Made when the first answer is scored, so that planning a run starts nothing."""
        if self._harness is None:
            from apps.cuda.harness import CudaHarness, Limits

            workers = None if self.verify.workers == "auto" else self.verify.workers
            options = {"cache": self.cache, **self.verify.with_}
            limits = Limits(function_s=self.verify.timeout_s)
            self._harness = CudaHarness(level=self.verify.sandbox, workers=workers, limits=limits, **options)
        return self._harness

    def __call__(self, pairs: Iterable[tuple[int, str]]) -> Iterator[float]:
        """Scores in order. Raises `DataError` for a row whose reference or solution fails its own check."""
        asked: list[int] = []

        def jobs() -> Iterator[tuple[CudaExample, str]]:
            for i, text in pairs:
                asked.append(i)
                yield self.examples[i], text

        for number, verdict in enumerate(self.harness.verify_many(jobs())):
            if verdict.status == "invalid_problem":
                raise DataError(f"the reference of '{self.examples[asked[number]].id}' fails: {verdict.detail}",
                                field="reference", hint="remove the row, or repair it")  # fmt: skip
            yield score_of(verdict, self._solution(asked[number]) if verdict.passed else None)

    @staticmethod
    def facts(scores: Sequence[float]) -> dict[str, float]:
        """Shares of answers that compile, and that are right, by their scores."""
        count = max(1, len(scores))
        return {"compiles": sum(s > BROKEN for s in scores) / count, "right": sum(s >= RIGHT for s in scores) / count}

    def _solution(self, index: int) -> CudaVerdict:
        """The verdict on a row's own solution, which an answer's time is compared with."""
        if index not in self._own:
            example = self.examples[index]
            found = self.harness.verify(example, example.solution or "")
            if not found.passed:
                raise DataError(f"the solution of '{example.id}' fails: {found.meaning}", field="solution",
                                hint="remove the row, or repair it")  # fmt: skip
            self._own[index] = found
        return self._own[index]


def score_of(verdict: CudaVerdict, solution: CudaVerdict | None = None) -> float:
    """The score of a verdict, by the furthest feature.

    0 without a kernel; 0.05 refused or with a plan that cannot be; 0.1 where it does not compile; 0.32 to 0.38 by the
    share of right trials; 0.6 to 1 for a right one, by its time beside the solution's (1: at least as fast). Each
    feature is more than a `gap` of 0.2 above the one before.
    """
    if verdict.status in ("empty", "error", "invalid_problem"):
        return 0.0
    if verdict.stage == "policy":
        return 0.05
    if verdict.stage == "compile":
        return BROKEN
    if not verdict.passed:
        return 0.32 + 0.06 * min(1.0, verdict.score)
    if solution is None or solution.timing is None or verdict.timing is None:
        return 1.0
    return RIGHT + (1 - RIGHT) * min(1.0, solution.timing.median / max(verdict.timing.median, 1e-9))
