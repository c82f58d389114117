"""Few-shot against fine-tuning, switch by switch (the grid of the BioASQ study): every arm answers the same questions.

The switches are the model (as it was, or tuned), how many answered questions stand before the one asked, and what is
read: nothing, the question's own passages, passages found among everybody's, or the own ones and more from an
encyclopedia. An arm is a report of the evaluator; the most frequent answer's score belongs beside all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.qa.data import QaExample
from apps.qa.metrics import found_documents
from core.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from apps.qa.pipeline import QaPipeline
    from core.evaluation.report import Report

CONTEXTS = ("none", "own", "found", "more")
METRICS = {
    "yesno": ("accuracy", "macro_f1", "majority"),
    "factoid": ("strict", "lenient", "mrr"),
    "list": ("list_f1",),
    "summary": ("rouge2_f1", "rouge_su4_f1"),
}
PARAGRAPH = 600
"""Characters from which on a passage of an encyclopedia ends with its sentence."""


def answer_grid(
    ask: QaPipeline, test: Sequence[QaExample], solved: Sequence[QaExample], *,
    shots: Sequence[int], contexts: Sequence[str], more: Sequence[str] = (), embed: Any = None,
) -> Iterator[tuple[str, int, Report]]:  # fmt: skip
    """(what is read, shots, report) of every arm of one model. `more`: passages of an encyclopedia.

    Raises:
        ConfigError: an unknown context, or more of an encyclopedia that is not there.
    """
    from apps.qa.evaluator import QaEvaluator

    everybody = passages_of([*test, *solved])
    metrics = [name for kind, names in METRICS.items() if any(e.type == kind for e in test) for name in names]
    own = ask.config
    for context in contexts:
        if context not in CONTEXTS:
            raise ConfigError(f"unknown context '{context}'", where="with.contexts", hint=nearest(context, CONTEXTS))
        if context == "more" and not more:
            raise ConfigError("there is no encyclopedia to take more from", where="with.encyclopedia")
        ask.use(corpus=more if context == "more" else everybody, solved=solved, embed=embed)
        asked = [dataclasses.replace(e, contexts=()) if context in ("none", "found") else e for e in test]
        for count in shots:
            template, extra = ("closed" if context == "none" else "rag"), (2 if context == "more" else 0)
            ask.config = dataclasses.replace(own, template=template, shots=count, extra=extra)
            yield context, count, QaEvaluator(metrics).score(ask.predict(asked, max_new_tokens=48), test)
    ask.config = own


def passages_of(examples: Sequence[QaExample]) -> list[str]:
    """Every passage of the examples once, but empty ones."""
    return list(dict.fromkeys(text for example in examples for text in example.contexts if text.strip()))


def retrieved(ask: QaPipeline, test: Sequence[QaExample], corpus: Sequence[QaExample], k: int = 10) -> dict[str, float]:
    """How well a question finds its own passages among everybody's, by the pipeline's way of retrieval."""
    texts = passages_of(corpus)
    ask.use(corpus=texts)
    assert ask.passages is not None
    how, expand = ask.config.retrieval, ask.config.expand
    found = [[texts[i] for i in ask.passages.search(e.question, k, how, expand)] for e in test]
    return found_documents(found, [set(e.contexts) for e in test])


def encyclopedia(path: str | Path) -> list[str]:
    """Passages of a text file of articles, one a line. Raises `DataError` when there is none."""
    from apps.qa.passages import sentences

    if not Path(path).is_file():
        raise DataError("file not found", file=path, hint="set with.encyclopedia to a file of articles, one a line")
    found: list[str] = []
    for article in Path(path).read_text(encoding="utf-8").splitlines():
        passage = ""
        for sentence in sentences(article):
            passage = f"{passage} {sentence}".strip()
            if len(passage) >= PARAGRAPH:
                found.append(passage)
                passage = ""
        found += [passage] if passage else []
    return found


def as_row(who: str, context: str, shots: int, report: Report) -> dict[str, Any]:
    """An arm as data: its switches, its metrics in percent, and the interval of the first."""
    values = {name: round(metric.value or 0.0, 2) for name, metric in report.metrics.items()}
    first = report.metrics[report.primary]
    ci = [round(v, 1) for v in first.ci95] if first.ci95 else None
    switches = {"model": who, "context": context, "shots": shots}
    return {**switches, **values, "by": report.primary, "ci95": ci, "n": first.n}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The arms for people, the best first, by the metric that each row says it is judged by."""
    by = rows[0]["by"]
    lines = [f"{'model':<8} {'reads':<6} {'shots':>5}  {by:>8}  95 %"]
    for row in sorted(rows, key=lambda row: -row[by]):
        ci = "{}–{}".format(*row["ci95"]) if row["ci95"] else "-"
        lines.append(f"{row['model']:<8} {row['context']:<6} {row['shots']:>5}  {row[by]:>8.1f}  {ci}")
    if "majority" in rows[0]:
        lines.append(f"always the most frequent answer: {rows[0]['majority']:.1f}")
    return "\n".join(lines)
