"""Answers scored as BioASQ scores them, and their citations; predictions are data, and no model is needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from apps.qa import metrics as field
from apps.qa.data import QaExample
from core.errors import DataError
from core.evaluation.bootstrap import bootstrap_ci
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report

YESNO = ("accuracy", "macro_f1", "majority", "answered", "accuracy_answered")
FACTOID = ("strict", "lenient", "mrr")
LIST = ("list_precision", "list_recall", "list_f1")
SUMMARY = ("rouge2_recall", "rouge2_f1", "rouge_su4_recall", "rouge_su4_f1")
CITED = ("citation_precision", "citation_recall")


@dataclass(frozen=True)
class Answer:
    """A prediction with what it rests on.

    Args:
        answer: a text, or a list of candidates. cited: the passages that it cites. shown: those it could choose from;
            None is those that the question brings.
    """

    answer: Any
    cited: tuple[str, ...] = ()
    shown: tuple[str, ...] | None = None


def as_answer(prediction: Any, number: int) -> Answer | None:
    """A prediction that tells what it cites; None for one that does not. Raises `DataError` with its index."""
    if isinstance(prediction, Answer):
        return prediction
    if not isinstance(prediction, Mapping):
        return None
    passages = (prediction.get("cited", ()), prediction.get("shown") or ())
    if (
        set(prediction) - {"answer", "cited", "shown"}
        or "answer" not in prediction
        or not all(
            isinstance(given, (list, tuple)) and all(isinstance(text, str) for text in given) for given in passages
        )
    ):
        expected = '{"answer": …, "cited": [passages], "shown"?: [passages]}'
        raise DataError(f"prediction {number} is no answer with citations", got=prediction, expected=expected)
    shown = prediction.get("shown")
    return Answer(prediction["answer"], tuple(passages[0]), None if shown is None else tuple(shown))


class QaEvaluator(BaseEvaluator):
    """All figures in percent. `majority` is what always giving the most frequent answer would reach; an empty text
    abstains: `answered` is the share of yes-no questions with an option, `accuracy_answered` the accuracy on these.

    A prediction is a text; candidates of a factoid or a list stand in a list, or in the text apart by ";". One that
    tells what it cites is an `Answer`, or {"answer", "cited": [passages], "shown"?: [passages]}. Citations are judged
    for factoids and lists: their precision over the answers that cite, their recall over the questions of which a shown
    passage holds the answer.
    """

    name: ClassVar[str] = "qa"
    primary: ClassVar[str] = "accuracy"
    known: ClassVar[tuple[str, ...]] = (*YESNO, *FACTOID, *LIST, *SUMMARY, *CITED)

    def __init__(self, metrics: Sequence[str] | None = None, *, bootstrap: int = 1000, seed: int = 0) -> None:
        super().__init__(metrics)
        self.bootstrap, self.seed = bootstrap, seed

    def score(self, predictions: Sequence[Any], examples: Sequence[QaExample]) -> Report:
        self.check(predictions, examples)
        told = [as_answer(prediction, number) for number, prediction in enumerate(predictions)]
        predictions = [given if own is None else own.answer for given, own in zip(predictions, told)]
        found: dict[str, Metric] = {}
        rows: list[dict[str, Any]] = []
        for number, (example, prediction) in enumerate(zip(examples, predictions)):
            name = example.id or str(number)
            rows.append({"id": name, "input": example.question, "reference": example.answer, "prediction": prediction})
        kinds: dict[str, list[int]] = {}
        for number, example in enumerate(examples):
            if example.answers:
                kinds.setdefault(example.type, []).append(number)
        found.update(self._yesno([(predictions[i], examples[i], rows[i]) for i in kinds.get("yesno", [])]))
        for names, kind, score in (
            (FACTOID, "factoid", lambda p, e: field.factoid(candidates(p), [n for g in e.answers for n in g])),
            (LIST, "list", lambda p, e: field.name_list(candidates(p), e.answers)),
            (SUMMARY, "summary", _ideal),
        ):
            found.update(
                self._means(names, kind, score, [(predictions[i], examples[i], rows[i]) for i in kinds.get(kind, [])])
            )
        named = [i for kind in ("factoid", "list") for i in kinds.get(kind, [])]
        found.update(self._citations([(told[i], examples[i], rows[i]) for i in named]))
        chosen = {name: found[name] for name in self.metrics}
        usable = [name for name in ("accuracy", "mrr", "list_f1", "rouge2_f1", *chosen) if name in chosen]
        primary = next((name for name in usable if chosen[name].value is not None), self.metrics[0])
        failures = [row for row in rows if row.get("score") == 0.0][:20]
        signature = {"measures": "BioASQ", "bootstrap": self.bootstrap, "seed": self.seed}
        return Report(self.name, chosen, signature, rows, failures, primary)

    def _yesno(self, triples: list[Any]) -> dict[str, Metric]:
        if not triples:
            return {name: Metric(None, 0, skipped="no yes-no questions with an answer") for name in YESNO}
        predicted = [decided(prediction, example) for prediction, example, _ in triples]
        wanted = [example.answers[0][0] for _, example, _ in triples]
        for given, right, (_, _, row) in zip(predicted, wanted, triples):
            row["score"] = float(given == right)
        classes = sorted({option for _, example, _ in triples for option in example.options})
        majority = 100 * Counter(wanted).most_common(1)[0][1] / len(wanted)
        f1 = 100 * field.macro_f1(predicted, wanted, classes)
        given = [float(p == w) for p, w in zip(predicted, wanted) if p]
        abstained = Metric(None, 0, skipped="the model abstained from every question")
        return {
            "answered": Metric(100 * len(given) / len(wanted), len(wanted), unit="%"),
            "accuracy_answered": self._mean(given) if given else abstained,
            "accuracy": self._mean([float(p == w) for p, w in zip(predicted, wanted)]),
            "macro_f1": Metric(f1, len(wanted), unit="%"),
            "majority": Metric(majority, len(wanted), unit="%"),
        }

    def _means(self, names: Sequence[str], kind: str, score: Callable, triples: list[Any]) -> dict[str, Metric]:
        if not triples:
            return {name: Metric(None, 0, skipped=f"no {kind} questions with an answer") for name in names}
        values = [score(prediction, example) for prediction, example, _ in triples]
        for value, (_, _, row) in zip(values, triples):
            row["score"] = value[-1]
        return {name: self._mean([value[place] for value in values]) for place, name in enumerate(names)}

    def _citations(self, triples: list[Any]) -> dict[str, Metric]:
        columns: tuple[list[float], list[float]] = ([], [])
        for own, example, row in triples:
            if own is None:
                continue
            shown = example.contexts if own.shown is None else own.shown
            row["cited"] = list(own.cited)
            for values, value in zip(columns, field.citations(own.cited, shown, example.answers)):
                if value is not None:
                    values.append(value)
        reasons = ("no answer cites a passage", "no passage that was shown holds an answer")
        if not any(own for own, _, _ in triples):
            reasons = ("no answer to a factoid or list tells what it cites",) * 2
        return {
            name: self._mean(column) if column else Metric(None, 0, skipped=reason)
            for name, column, reason in zip(CITED, columns, reasons)
        }

    def _mean(self, values: list[float]) -> Metric:
        ci = None
        if self.bootstrap and len(values) > 1:
            ci = bootstrap_ci(np.array(values), lambda s: 100 * s[0] / len(values), n=self.bootstrap, seed=self.seed)
        return Metric(100 * float(np.mean(values)), len(values), ci, unit="%")


def candidates(prediction: Any) -> list[str]:
    """The names in a prediction, in order."""
    if isinstance(prediction, (list, tuple)):
        return [str(item) for item in prediction]
    return [part.strip() for part in str(prediction).split(";") if part.strip()]


def decided(prediction: Any, example: QaExample) -> str:
    """The option that a text begins with, word by word whatever the case; the longest of several, "" for none."""
    words = _words(str(prediction))
    found = [option for option in example.options if words[: len(own := _words(option))] == own and own]
    return max(found, key=len, default="")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _ideal(prediction: Any, example: QaExample) -> tuple[float, float, float, float]:
    """The best of the ideal answers, measure by measure."""
    texts = [text for group in example.answers for text in group]
    two = [field.rouge_2(str(prediction), text) for text in texts]
    skip = [field.rouge_su4(str(prediction), text) for text in texts]
    return max(t[0] for t in two), max(t[1] for t in two), max(s[0] for s in skip), max(s[1] for s in skip)
