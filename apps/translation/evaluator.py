"""The translation evaluator: predictions and references in, a report out. It never loads a translation model.

Besides sacreBLEU's corpus metrics it counts what such scores hide: empty output, the wrong language, text beyond the
translation, missed terminology. COMET runs from a local checkpoint in a process of its own, or is reported as skipped
with the reason. Predictions are data, so anyone's output can be scored by the same call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from apps.translation import metrics as field
from apps.translation.data import TranslationExample
from core.errors import BackendUnavailable, DataError
from core.evaluation.bootstrap import bootstrap_ci, paired_bootstrap
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report


class TranslationEvaluator(BaseEvaluator):
    """Score translations.

    Args:
        metrics: names out of `known`; default all, `comet` only when its checkpoint is given.
        tokenize: sacreBLEU tokenizer for BLEU; default by target language.
        bootstrap: resamples for intervals and paired tests; 0 gives none.
        seed: seed of the resampling.
        comet: folder or .ckpt of a COMET model; `comet_python`: the interpreter whose environment holds COMET.
        worst: how many sentences with the lowest chrF go into the report's failures.

    With several directions among the examples, each corpus metric is the mean over directions and every direction is
    listed as well ("bleu/de-en").
    """

    name = "translation"
    primary = "bleu"
    known = (
        "bleu",
        "chrf",
        "chrf++",
        "ter",
        "off_target",
        "empty",
        "length_ratio",
        "over_generation",
        "terms",
        "comet",
    )

    def __init__(
        self,
        metrics: list[str] | None = None,
        *,
        tokenize: str | None = None,
        bootstrap: int = 1000,
        seed: int = 12345,
        comet: str | Path | None = None,
        comet_python: str | None = None,
        worst: int = 20,
    ) -> None:
        chosen = list(metrics) if metrics else [name for name in self.known if name != "comet" or comet]
        super().__init__(chosen)
        self.tokenize, self.bootstrap, self.seed = tokenize, bootstrap, seed
        self.comet, self.comet_python, self.worst = comet, comet_python, worst

    def score(self, predictions: Sequence[str], examples: Sequence[TranslationExample]) -> Report:
        """Score a corpus.

        Raises:
            DataError: nothing to score, lengths differ (naming the first index without partner), or an example has
                no reference.
        """
        self.check(predictions, examples)
        for index, example in enumerate(examples):
            if example.tgt is None:
                raise DataError(f"example {index} has no reference", field="tgt", hint="scoring needs translations")
        corpus = _Corpus(predictions, examples, self)
        metrics: dict[str, Metric] = {}
        for name in self.metrics:
            metrics.update(METRICS[name](name, corpus))
        rows = corpus.rows()
        worst = sorted((row for row in rows if "chrf" in row), key=lambda row: row["chrf"])[: self.worst]
        return Report(
            name=self.name,
            metrics=metrics,
            signature=corpus.signature,
            rows=rows,
            failures=worst,
            primary=self.primary if self.primary in metrics else next(iter(metrics)),
        )

    def compare(
        self, first: Sequence[str], second: Sequence[str], examples: Sequence[TranslationExample], metric: str = "bleu"
    ) -> dict[str, Any]:
        """Paired bootstrap (Koehn 2004) of two systems on the same sentences of one direction.

        Returns:
            both scores, their difference with its 95 % interval, and the two-sided p-value of "no difference".
        """
        for predictions in (first, second):
            self.check(predictions, examples)
        targets = sorted({example.tgt_lang for example in examples})
        if len(targets) > 1:
            raise DataError("a paired test needs one target language", got=targets)
        references = [example.tgt or "" for example in examples]
        systems = [field.corpus_score(metric, list(s), references, targets[0], self.tokenize) for s in (first, second)]
        a, b = systems
        test = paired_bootstrap(a.statistics, b.statistics, a.of, n=self.bootstrap or 1000, seed=self.seed)
        return {
            "metric": metric,
            "first": a.score,
            "second": b.score,
            "signature": a.signature,
            **asdict(test),
        }


class _Corpus:
    """What the metric functions read: texts, directions, settings; and the signature they add to."""

    def __init__(
        self, predictions: Sequence[str], examples: Sequence[TranslationExample], evaluator: TranslationEvaluator
    ) -> None:
        self.predictions = [str(text) for text in predictions]
        self.examples = list(examples)
        self.references = [example.tgt or "" for example in examples]
        self.evaluator = evaluator
        self.signature: dict[str, Any] = {"bootstrap": evaluator.bootstrap, "seed": evaluator.seed}
        self.directions: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            self.directions[example.src_lang, example.tgt_lang].append(index)

    def texts(self, indices: list[int]) -> tuple[list[str], list[str]]:
        return [self.predictions[i] for i in indices], [self.references[i] for i in indices]

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {
                "id": example.id if example.id is not None else str(index),
                "input": example.src,
                "reference": example.tgt,
                "prediction": prediction,
                "src_lang": example.src_lang,
                "tgt_lang": example.tgt_lang,
            }
            for index, (example, prediction) in enumerate(zip(self.examples, self.predictions))
        ]
        with suppress(BackendUnavailable):
            for row, value in zip(rows, field.sentence_chrf(self.predictions, self.references)):
                row["chrf"] = round(value, 2)
        return rows


def _sacrebleu(name: str, corpus: _Corpus) -> dict[str, Metric]:
    settings, found = corpus.evaluator, {}
    higher = name != "ter"
    for (src, tgt), indices in corpus.directions.items():
        label = f"{name}/{src}-{tgt}"
        try:
            scored = field.corpus_score(name, *corpus.texts(indices), tgt, settings.tokenize)
        except BackendUnavailable as error:
            found[label] = _skipped(f"{error.what}; {error.hint}" if error.hint else error.what, higher=higher)
            continue
        ci = None
        if settings.bootstrap:
            ci = bootstrap_ci(scored.statistics, scored.of, n=settings.bootstrap, seed=settings.seed)
        corpus.signature[label] = scored.signature
        found[label] = Metric(scored.score, len(indices), ci, higher_is_better=higher)
    if len(found) == 1:
        label, only = found.popitem()
        if label in corpus.signature:
            corpus.signature[name] = corpus.signature.pop(label)
        return {name: only}
    missing = [f"{label}: {metric.skipped}" for label, metric in found.items() if metric.skipped]
    if missing:
        return {name: _skipped("; ".join(missing), higher=higher), **found}
    mean = sum(metric.value or 0.0 for metric in found.values()) / len(found)
    corpus.signature[name] = f"mean over {len(found)} directions"
    return {name: Metric(mean, len(corpus.examples), None, higher_is_better=higher), **found}


def _off_target(name: str, corpus: _Corpus) -> dict[str, Metric]:
    try:
        unknown = sorted({e.tgt_lang for e in corpus.examples if not field.detectable(e.tgt_lang)})
    except ImportError:
        return {name: _skipped("py3langid is not installed", higher=False)}
    if unknown:
        return {name: _skipped(f"py3langid does not know {', '.join(unknown)}", higher=False)}
    wrong = []
    for texts in (corpus.predictions, corpus.references):
        pairs = [(d, e.tgt_lang) for d, e in zip(field.detect(texts), corpus.examples) if d]
        wrong.append(_percent(sum(not field.is_language(d, code) for d, code in pairs), len(pairs)))
        corpus.signature.setdefault("off_target", {})["predictions" if len(wrong) == 1 else "references"] = wrong[-1]
    corpus.signature["off_target"]["identifier"] = "py3langid"
    return {name: Metric(wrong[0], sum(bool(p.strip()) for p in corpus.predictions), unit="%", higher_is_better=False)}


def _empty(name: str, corpus: _Corpus) -> dict[str, Metric]:
    return _share(name, [not text.strip() for text in corpus.predictions])


def _over_generation(name: str, corpus: _Corpus) -> dict[str, Metric]:
    texts = zip(corpus.examples, corpus.predictions, corpus.references)
    return _share(name, [field.over_generated(e.src, prediction, ref) for e, prediction, ref in texts])


def _length_ratio(name: str, corpus: _Corpus) -> dict[str, Metric]:
    total = sum(map(len, corpus.references))
    value = sum(map(len, corpus.predictions)) / total if total else None
    return {name: Metric(value, len(corpus.references), unit="×", skipped=None if total else "references are empty")}


def _terms(name: str, corpus: _Corpus) -> dict[str, Metric]:
    required = [(t, p, e.tgt_lang) for e, p in zip(corpus.examples, corpus.predictions) for _, t in e.terms]
    if not required:
        return {name: _skipped("no example carries terms")}
    hits = sum(field.has_term(term, text, code) for term, text, code in required)
    return {name: Metric(_percent(hits, len(required)), len(required), unit="%")}


def _comet(name: str, corpus: _Corpus) -> dict[str, Metric]:
    from apps.translation.comet import comet_scores

    settings = corpus.evaluator
    if not settings.comet:
        return {name: _skipped("no checkpoint given (option comet: a local path)")}
    texts = zip(corpus.examples, corpus.predictions, corpus.references)
    rows = [{"src": e.src, "mt": prediction, "ref": reference} for e, prediction, reference in texts]
    try:
        scores = comet_scores(settings.comet, rows, settings.comet_python)
    except BackendUnavailable as error:
        return {name: _skipped(error.what)}
    corpus.signature[name] = str(settings.comet)
    ci = bootstrap_ci(
        np.array(scores), lambda total: total[0] / len(scores), n=settings.bootstrap or 1000, seed=settings.seed
    )
    return {name: Metric(sum(scores) / len(scores), len(scores), ci)}


METRICS: dict[str, Callable[[str, _Corpus], dict[str, Metric]]] = {
    "bleu": _sacrebleu,
    "chrf": _sacrebleu,
    "chrf++": _sacrebleu,
    "ter": _sacrebleu,
    "off_target": _off_target,
    "empty": _empty,
    "length_ratio": _length_ratio,
    "over_generation": _over_generation,
    "terms": _terms,
    "comet": _comet,
}


def _share(name: str, flags: list[bool]) -> dict[str, Metric]:
    return {name: Metric(_percent(sum(flags), len(flags)), len(flags), unit="%", higher_is_better=False)}


def _skipped(reason: str, *, higher: bool = True) -> Metric:
    return Metric(None, 0, skipped=reason, higher_is_better=higher)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0
