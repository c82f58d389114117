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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from apps.rtl import prompts
from apps.rtl.methods.sft import row_of
from core.config.registry import method
from core.config.schema import key
from core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from apps.rtl.example import RtlExample
    from apps.rtl.verdict import RtlVerdict
    from core.training.stage import Stage, StageContext

AHEAD = 16384
"""Answers that may wait for their check."""


@dataclass(frozen=True)
class ItertlConfig:
    """Options of `rtl.itertl`; the recipe's `verify:` block says how answers are checked."""

    acts_on: ClassVar[tuple[str, ...]] = ("verify",)

    template: str = key("spec", "prompt template: " + ", ".join(prompts.TEMPLATES))
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    iterations: int = key(3, "how often the model answers anew; the epochs are shared among them", least=1)
    samples_per_prompt: int = key(4, "answers of a row, the reference among them", least=2)
    score: Literal["functional", "likeness"] = key("functional", "what ranks answers that compile")
    loss: Literal["rank_margin", "rank_log", "dpo", "best_of", "none"] = key("rank_margin", "the ranking term")
    gap: float = key(0.2, "least difference of scores that counts", least=0)
    margin: float = key(0.3, "by how much the better answer's probability must be ahead", least=0)
    weight: float = key(1.0, "of the ranking term", least=0)
    restart: bool = key(False, "train the first model again in every iteration, instead of the last one")
    split_backward: bool = key(False, "one answer at a time through the model, so that memory does not grow with them")
    temperature: float = key(0.5, "of sampling", above=0)
    top_p: float = key(0.95, "of sampling", above=0, most=1)
    max_new_tokens: int = key(512, "longest answer, at most data.max_length; a longer one counts as failed", least=1)
    sample_batch: int = key(64, "answers sampled at a time", least=1)
    beta: float = key(0.1, "of the loss dpo", above=0)
    kl_limit: float | None = key(None, "stop when the model is this far from the first one, in nats a token")
    unique_least: float = key(0.0, "stop when fewer than this share of the answers differ", least=0, most=1)


@method("rtl.itertl", config=ItertlConfig)
def itertl(ctx: StageContext) -> Stage:
    """Rows of references, with a trainer that adds ranked answers."""
    from core.inference.request import SamplingParams
    from core.training.stage import Stage
    from core.training.verifier_loop import LoopSettings, ranked_trainer

    options, recipe = ctx.options, ctx.recipe
    if recipe.data.packing:
        raise ConfigError("rows with candidates cannot be packed", where="data.packing", hint="set packing: false")
    if not isinstance(ctx.train, Sequence):
        raise ConfigError("iterations need the rows in memory", where="data.streaming", hint="set streaming: false")
    longest = min(options.max_new_tokens, recipe.data.max_length)
    settings = LoopSettings(
        options.iterations, options.samples_per_prompt - 1, options.loss, options.gap, options.margin, options.weight,
        beta=options.beta, batch=options.sample_batch,
        restart=options.restart, split=options.split_backward,
        sampling=SamplingParams(longest, temperature=options.temperature, top_p=options.top_p),
        kl_limit=options.kl_limit, unique_least=options.unique_least,
    )  # fmt: skip
    examples = list(ctx.train)
    rows = [row_of(example, options.template) for example in examples]
    held = [row_of(example, options.template) for example in ctx.eval or () if example.reference]
    scorer = Scorer(examples, recipe.verify, options.score, str(ctx.run.path / "verify") if ctx.run else None)
    folder = ctx.run.path / "iterations" / str(options.iterations) if ctx.run else None
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


def score_of(verdict: RtlVerdict, example: RtlExample, how: str = "functional") -> float:
    """The score of a verdict: 1 for a pass, 0 without code, 0.01 where it does not compile or is refused.

    functional: (0.5, 1) by matching samples where the testbench counts them. likeness: [0, 1) by text.
    """
    if verdict.passed:
        return 1.0
    if verdict.stage == "extract":
        return 0.0
    if verdict.stage in ("policy", "compile"):
        return 0.01
    likeness = difflib.SequenceMatcher(None, verdict.code.split(), (example.reference or "").split(), False).ratio()
    if how == "likeness" or not verdict.samples:
        return min(0.999, likeness) if how == "likeness" else 0.02 + 0.47 * likeness
    return 0.5 + 0.499 * verdict.score
