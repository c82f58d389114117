"""How near the student's vectors are to the language model's, in every language, and how well both tell classes.

`unexplained` is the squared distance from the language model's vector of the English text, over the variance of those
vectors: 0 is the same, 1 no better than their mean. `found` is the share of texts whose own English is the nearest of
all English texts (cosine); `found_direct` is the same of the language model reading the text by itself, the baseline.
Of n texts chance finds 1/n. `accuracy` and `accuracy_direct` compare the classes by both ways, after a task was learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apps.lm.stacked.data import StackExample
from core.errors import DataError
from core.evaluation.bootstrap import bootstrap_ci
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report


class StackEvaluator(BaseEvaluator):
    """Predictions are {"vector", "english", "direct"}, lists of numbers, and {"label", "direct_label"} of a task."""

    name = "stacked"
    primary = "found"
    known = ("found", "found_direct", "unexplained", "accuracy", "accuracy_direct")
    lower_is_better = ("unexplained",)

    def score(self, predictions: Sequence[dict[str, Any]], examples: Sequence[StackExample]) -> Report:
        self.check(predictions, examples)
        columns = {**self._vectors(predictions), **self._classes(predictions, examples)}
        langs = sorted({example.lang for example in examples})
        parts = [("", np.ones(len(examples), bool))]
        if len(langs) > 1:
            parts += [(f"/{lang}", np.array([e.lang == lang for e in examples])) for lang in langs]
        metrics: dict[str, Metric] = {}
        for metric in self.metrics:
            stats, reason = columns.get(metric, (None, "the model has learnt no task, or no text has a label"))
            if stats is None:
                metrics[metric] = Metric(None, 0, skipped=reason, higher_is_better=metric not in self.lower_is_better)
                continue
            for suffix, chosen in parts:
                rows = stats[chosen & ~np.isnan(stats).any(1)]
                if len(rows):
                    metrics[metric + suffix] = self._metric(metric, rows)
        known = sum(row.get("english") is not None for row in predictions)
        signature = {"nearest": "cosine, of all English texts", "chance of found": round(1 / max(known, 1), 4)}
        rows = [self._row(e, p, columns, i) for i, (e, p) in enumerate(zip(examples, predictions))]
        missed = [row for row in rows if row.get("found") == 0.0][:20]
        return Report(self.name, metrics, signature, rows, missed, self.metrics[0])

    def _metric(self, metric: str, rows: np.ndarray) -> Metric:
        ratio: Callable[[np.ndarray], float] = lambda total: float(total[0] / max(total[1], 1e-12))  # noqa: E731
        higher = metric not in self.lower_is_better
        return Metric(ratio(rows.sum(0)), len(rows), bootstrap_ci(rows, ratio), higher_is_better=higher)

    @staticmethod
    def _vectors(predictions: Sequence[dict[str, Any]]) -> dict[str, tuple[np.ndarray | None, str]]:
        """Statistics (n, 2), of which a metric is the quotient of the sums; NaN where a text has no English."""
        known = [i for i, row in enumerate(predictions) if row.get("english") is not None]
        reason = "no text stands beside its English"
        if not known:
            return dict.fromkeys(("found", "found_direct", "unexplained"), (None, reason))
        try:
            english, student, direct = (
                np.array([predictions[i][name] for i in known], dtype=np.float64)
                for name in ("english", "vector", "direct")
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"a prediction has no vectors of one length: {error}", field="vector") from error
        empty = np.full((len(predictions), 2), np.nan)
        far, spread = ((student - english) ** 2).sum(1), ((english - english.mean(0)) ** 2).sum(1)
        made = {"unexplained": np.stack([far, spread], 1)}
        for name, vectors in (("found", student), ("found_direct", direct)):
            made[name] = np.stack([_finds(vectors, english), np.ones(len(known))], 1)
        found: dict[str, tuple[np.ndarray | None, str]] = {}
        for name, values in made.items():
            table = empty.copy()
            table[known] = values
            found[name] = (table, "")
        return found

    @staticmethod
    def _classes(
        predictions: Sequence[dict[str, Any]], examples: Sequence[StackExample]
    ) -> dict[str, tuple[np.ndarray | None, str]]:
        if not any(example.label and row.get("label") for example, row in zip(examples, predictions)):
            return {}
        found: dict[str, tuple[np.ndarray | None, str]] = {}
        for name, key in (("accuracy", "label"), ("accuracy_direct", "direct_label")):
            right = [[float(row.get(key) == e.label), 1.0] if e.label else [np.nan, np.nan]
                     for e, row in zip(examples, predictions)]  # fmt: skip
            found[name] = (np.array(right), "")
        return found

    @staticmethod
    def _row(example: StackExample, prediction: dict[str, Any], columns: dict[str, Any], index: int) -> dict[str, Any]:
        row = {"text": example.text[:200], "lang": example.lang, "english": example.english[:200]}
        row |= {"label": example.label, "answer": prediction["label"]} if prediction.get("label") else {}
        stats = columns["found"][0]
        return row if stats is None or np.isnan(stats[index, 0]) else {**row, "found": float(stats[index, 0])}


def _finds(vectors: np.ndarray, english: np.ndarray) -> np.ndarray:
    """1 where a text's own English, or the same vector, is the nearest; (n,)."""
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (vectors, english)]
    near = unit[0] @ unit[1].T
    own = near[np.arange(len(near)), np.arange(len(near))]
    # texts that say the same in two languages stand beside one English text, which is there twice
    return (own >= near.max(1) - 1e-9).astype(np.float64)
