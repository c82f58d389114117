"""ITERTL (Wu et al. 2024): a model is trained on its own answers, ranked by what a checker says of them, repeatedly.

Each iteration samples answers with the model of the iteration before, so that what is ranked is what the model would
say now. The score of an answer is RTLCoder's (Liu et al. 2023), 0 without code, 0.01 where it does not compile, else
its likeness to the reference; with `score: functional` an answer that simulates is scored by the share of matching
samples instead, which is above every answer that does not. Every checker run goes through the sandbox.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.rtl import prompts
from apps.rtl.methods.sft import row_of
from core.config.limits import RANKED
from core.config.registry import method
from core.config.schema import key
from core.errors import ConfigError, DataError
from core.training.ranked_options import RankedOptions

if TYPE_CHECKING:
    from apps.rtl.example import RtlExample
    from apps.rtl.verdict import RtlVerdict
    from core.training.stage import Stage, StageContext

AHEAD = 16384
"""Answers that may wait for their check."""
BROKEN = 0.01
"""The score of an answer that does not compile, or is refused."""


@dataclass(frozen=True)
class ItertlConfig(RankedOptions):
    """Options of `rtl.itertl`; the recipe's `verify:` block says how answers are checked."""

    template: str = key("spec", "prompt template", one_of=prompts.TEMPLATES)
    score: Literal["functional", "likeness"] = key("functional", "what ranks answers that compile")


@method("rtl.itertl", config=ItertlConfig, limits=RANKED)
def itertl(ctx: StageContext) -> Stage:
    """Rows of references, with a trainer that adds ranked answers."""
    from core.training.stage import Stage
    from core.training.verifier_loop import ranked_trainer

    options, recipe = ctx.options, ctx.recipe
    settings = options.settings(ctx)
    examples = list(ctx.train)
    rows = [row_of(example, options.template) for example in examples]
    held = [row_of(example, options.template) for example in ctx.eval or () if example.reference]
    scorer = Scorer(examples, recipe.verify, options.score, str(ctx.run.path / "verify") if ctx.run else None)
    folder = ctx.folder / "iterations" if ctx.folder else None
    trainer = ranked_trainer(settings, ctx.tokenizer, scorer, ctx.run, folder)
    return Stage(rows=rows, eval_rows=held, layout="rows", mode=options.mode, trainer=trainer)


class Scorer:
    """Scores of (row number, answer) pairs, in [0, 1].

    Args:
        examples: the rows. verify: the recipe's block. how: functional or likeness. cache: a folder of known runs.
    """

    def __init__(self, examples: Sequence[RtlExample], verify: Any, how: str = "functional",
                 cache: str | None = None) -> None:  # fmt: skip
        if verify.name not in (None, "rtl"):
            raise ConfigError(f"unknown verifier '{verify.name}'", where="verify.name", hint="this app has: rtl")
        self.examples, self.verify, self.how, self.cache = examples, verify, how, cache
        self._harness: Any = None

    @property
    def harness(self) -> Any:
        """Made when the first answer is scored, so that planning a run starts nothing."""
        if self._harness is None:
            from apps.rtl.engines import Limits
            from apps.rtl.harness import RtlHarness

            workers = None if self.verify.workers == "auto" else self.verify.workers
            limits = Limits(simulate_s=min(30.0, self.verify.timeout_s))
            options = {"cache": self.cache, **self.verify.with_}
            self._harness = RtlHarness(level=self.verify.sandbox, workers=workers, limits=limits, **options)
        return self._harness

    def __call__(self, pairs: Iterable[tuple[int, str]]) -> Iterator[float]:
        """Scores in order; pairs are read far ahead, so that the model samples while answers are checked.

        Raises `DataError` for a row whose own reference fails: nothing could be learnt from its verdicts.
        """
        asked: list[RtlExample] = []

        def jobs() -> Iterator[tuple[RtlExample, str]]:
            for i, text in pairs:
                asked.append(self.examples[i])
                yield self.examples[i], text

        for number, verdict in enumerate(self.harness.verify_many(jobs(), ahead=AHEAD)):
            example = asked[number]
            if verdict.letter == "I":
                raise DataError(
                    f"the reference of '{example.id}' fails its own check: {verdict.detail}", field="reference",
                    hint="remove the row, or repair its testbench",
                )  # fmt: skip
            yield score_of(verdict, example, self.how)

    @staticmethod
    def facts(scores: Sequence[float]) -> dict[str, float]:
        """The syntax rate of answers by their scores."""
        return {"compiles": sum(score > BROKEN for score in scores) / max(1, len(scores))}


def score_of(verdict: RtlVerdict, example: RtlExample, how: str = "functional") -> float:
    """The score of a verdict: 1 for a pass, 0 without code, 0.01 where it does not compile or is refused.

    functional: 0.5 to 0.75 by matching samples where the testbench counts them, so that a nearly right answer is more
    than a `gap` of 0.2 below a right one. likeness: [0, 1) by text.
    """
    if verdict.passed:
        return 1.0
    if verdict.stage == "extract":
        return 0.0
    if verdict.stage in ("policy", "compile"):
        return BROKEN
    likeness = difflib.SequenceMatcher(None, verdict.code.split(), (example.reference or "").split(), False).ratio()
    if how == "likeness" or not verdict.samples:
        return min(0.999, max(2 * BROKEN, likeness)) if how == "likeness" else 0.02 + 0.47 * likeness
    return 0.5 + 0.25 * verdict.score
