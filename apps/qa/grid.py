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
METRICS = ("accuracy", "macro_f1", "majority")
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

    everybody = list(dict.fromkeys(text for e in (*test, *solved) for text in e.contexts))
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
            yield context, count, QaEvaluator(METRICS).score(ask.predict(asked), test)
    ask.config = own


def retrieved(ask: QaPipeline, test: Sequence[QaExample], corpus: Sequence[QaExample], k: int = 10) -> dict[str, float]:
    """How well a question finds its own passages among everybody's, by the pipeline's way of retrieval."""
    texts = list(dict.fromkeys(text for e in corpus for text in e.contexts))
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
    """An arm as data: its switches, and its metrics in percent with the interval of the accuracy."""
    accuracy = report.metrics["accuracy"]
    values = {name: round(report.value(name) or 0.0, 2) for name in METRICS}
    ci = [round(v, 1) for v in accuracy.ci95] if accuracy.ci95 else None
    return {"model": who, "context": context, "shots": shots, **values, "ci95": ci, "n": accuracy.n}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The arms for people, the best first."""
    lines = [f"{'model':<8} {'reads':<6} {'shots':>5}  {'accuracy':>8}  {'95 %':<13} {'macro F1':>8}"]
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        ci = "{}–{}".format(*row["ci95"]) if row["ci95"] else "-"
        lines.append(
            f"{row['model']:<8} {row['context']:<6} {row['shots']:>5}  {row['accuracy']:>8.1f}  {ci:<13} "
            f"{row['macro_f1']:>8.1f}"
        )
    majority = rows[0]["majority"] if rows else 0.0
    return "\n".join([*lines, f"always the most frequent answer: {majority:.1f}"])
