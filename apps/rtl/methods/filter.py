"""Verification-based filtering of training rows (after OpenLLM-RTL, Liu et al. 2025, which kept 7K of 80K by it).

A row stays when its reference compiles and either passes its testbench or, where there is none, is confirmed by others:
k implementations of the same specification are compared pairwise by equivalence, and the row stays when its reference
lies in the largest class of equals and that class has at least `quorum` members. The vote is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from apps.rtl import prompts
from apps.rtl.equivalence import equivalent
from apps.rtl.example import RtlExample
from apps.rtl.harness import RtlHarness, reference_as_candidate
from apps.rtl.methods.sft import row_of
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError
from core.execution import ExecPool

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class FilterConfig:
    """Options of `rtl.filtered_sft`: supervised training on the rows that verification keeps."""

    acts_on: ClassVar[tuple[str, ...]] = ("verify",)

    template: str = key("spec", "prompt template", one_of=prompts.TEMPLATES)
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    unconfirmed: Literal["keep", "drop"] = key("drop", "rows that compile and have neither testbench nor others")
    quorum: int = key(2, "equal implementations of one specification that confirm each other", least=2)


@dataclass(frozen=True)
class Kept:
    """What became of a row: kept or not, and why, in one word."""

    keep: bool
    why: str


def verified(
    examples: Sequence[RtlExample], harness: RtlHarness, *, quorum: int = 2, unconfirmed: bool = False
) -> list[Kept]:
    """Judge every row's reference.

    Returns:
        one `Kept` a row, whose `why` is passes, fails, "does not compile", confirmed, outvoted or unconfirmed.
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if example.testbench is None and example.reference:
            groups.setdefault(" ".join(example.spec.split()), []).append(index)
    with ExecPool(harness.workers) as pool:
        first = list(pool.imap(lambda example: _checked(example, harness), examples))
        compiled = {i for i, found in enumerate(first) if found is None}
        votes = [[i for i in group if i in compiled] for group in groups.values()]
        for found in pool.imap(lambda group: _vote(group, examples, harness, quorum), votes):
            for index, verdict in found.items():
                first[index] = verdict
    return [found if found is not None else Kept(unconfirmed, "unconfirmed") for found in first]


def _checked(example: RtlExample, harness: RtlHarness) -> Kept | None:
    """The verdict by testbench; None for a row that compiles and has none."""
    if not example.reference:
        return Kept(False, "no reference")
    verdict = harness.verify(example, reference_as_candidate(example))
    if verdict.stage in ("extract", "policy", "compile") and not verdict.passed:
        return Kept(False, "does not compile")
    if example.testbench is None:
        return None
    return Kept(verdict.passed, "passes" if verdict.passed else "fails")


def _vote(group: list[int], examples: Sequence[RtlExample], harness: RtlHarness, quorum: int) -> dict[int, Kept]:
    """Verdicts by vote: rows of the one largest class of proved equals are confirmed, if it has `quorum` members.

    Empty when nothing is decided.
    """
    if len(group) < quorum:
        return {}
    classes: list[list[int]] = []
    for i in group:
        mine = next((c for c in classes if _equal(examples[c[0]], examples[i], harness)), None)
        if mine is None:
            classes.append([i])
        else:
            mine.append(i)
    sizes = [len(c) for c in classes]
    best = classes[sizes.index(max(sizes))]
    if len(best) < quorum or sizes.count(len(best)) > 1:
        return {}
    return {i: Kept(True, "confirmed") if i in best else Kept(False, "outvoted") for i in group}


def _equal(first: RtlExample, second: RtlExample, harness: RtlHarness) -> bool:
    answer = equivalent(
        first.reference or "", second.reference or "", first.reference_top, second.reference_top,
        level=harness.level, cache=harness.cache,
    )  # fmt: skip
    return answer == "equal"


@method("rtl.filtered_sft", config=FilterConfig)
def filtered_sft(ctx: StageContext) -> Stage:
    """Prompted references, of the rows that verification keeps."""
    from apps.rtl.methods.itertl import Scorer
    from core.training.callbacks import say
    from core.training.stage import Stage

    options = ctx.options
    examples: Iterable[Any] = list(ctx.train)
    cache = str(ctx.run.path / "verify") if ctx.run else None
    harness = Scorer(list(examples), ctx.recipe.verify, cache=cache).harness
    found = verified(list(examples), harness, quorum=options.quorum, unconfirmed=options.unconfirmed == "keep")
    kept = [example for example, one in zip(examples, found) if one.keep]
    counts = Counter(one.why for one in found)
    if ctx.run is not None:
        say(ctx.run, f"verification keeps {len(kept)} of {len(found)} rows: {dict(counts.most_common())}")
    if not kept:
        raise DataError(f"verification keeps none of {len(found)} rows: {dict(counts)}", hint="look at the references")
    held = [row_of(example, options.template) for example in ctx.eval or () if example.reference]
    return Stage(rows=[row_of(e, options.template) for e in kept], eval_rows=held, layout="rows", mode=options.mode)
