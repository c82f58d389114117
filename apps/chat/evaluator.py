"""How near answers come to reference answers, and what is wrong with them whatever the reference says.

ROUGE-L (Lin 2004) by the longest common subsequence of words, F1 of shared words as in SQuAD (Rajpurkar et al. 2016),
exact match; and without a reference: empty answers, and repetition, the share of four-word runs that occurred before in
the same answer. None of them sees whether an answer is good advice: for that, compare systems with `chat.dpo`'s
held-out accuracy, or read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apps.chat.arithmetic import last_item
from apps.chat.data import ChatExample
from core.evaluation.bootstrap import bootstrap_ci
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"\w+", text.lower())


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, in percent."""
    from rapidfuzz.distance import LCSseq

    mine, other = words(answer), words(reference)
    common = LCSseq.similarity(mine, other)
    return 200.0 * common / (len(mine) + len(other)) if common else 0.0


def word_f1(answer: str, reference: str) -> float:
    """F1 of the words that both have, in percent."""
    mine, other = words(answer), words(reference)
    common = sum((Counter(mine) & Counter(other)).values())
    return 200.0 * common / (len(mine) + len(other)) if common else 0.0


def exact(answer: str, reference: str) -> float:
    """100 for the same words in the same order."""
    return 100.0 * (words(answer) == words(reference))


def right(answer: str, reference: str) -> float:
    """100 for an answer that comes down to the reference's last number or word."""
    return 100.0 * (bool(answer.strip()) and last_item(answer) == last_item(reference))


def repetition(answer: str) -> float:
    """Share of four-word runs that occurred before in the answer, in percent."""
    found = words(answer)
    runs = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
    return 100.0 * (1 - len(set(runs)) / len(runs)) if runs else 0.0


AGAINST: dict[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l, "word_f1": word_f1, "exact": exact, "right": right,
}  # fmt: skip
ALONE: dict[str, Callable[[str], float]] = {
    "repetition": repetition,
    "empty": lambda answer: 100.0 * (not answer.strip()),
}


class ChatEvaluator(BaseEvaluator):
    """Predictions are answers; an example's `answer` is the reference."""

    name = "chat"
    primary = "rouge_l"
    known = (*AGAINST, *ALONE)
    lower_is_better = tuple(ALONE)

    def score(self, predictions: Sequence[str], examples: Sequence[ChatExample]) -> Report:
        self.check(predictions, examples)
        with_reference = [i for i, example in enumerate(examples) if example.answer]
        rows: list[dict[str, Any]] = [
            {"input": example.messages[-1][1], "reference": example.answer, "prediction": prediction}
            for prediction, example in zip(predictions, examples)
        ]
        metrics = {}
        for name in self.metrics:
            if name in ALONE:
                values = [ALONE[name](prediction) for prediction in predictions]
                places = list(range(len(rows)))
            else:
                values = [AGAINST[name](predictions[i], examples[i].answer or "") for i in with_reference]
                places = with_reference
            for place, value in zip(places, values):
                rows[place][name] = round(value, 2)
            metrics[name] = _mean(values, name in ALONE)
        primary = self.primary if self.primary in metrics else self.metrics[0]
        worst = sorted(rows, key=lambda row: row.get(primary, 0.0), reverse=primary in ALONE)[:20]
        signature = {
            "words": "lower-case runs of letters and digits",
            "rouge_l": "F1 of the longest common subsequence",
        }
        return Report(self.name, metrics, signature, rows, worst, primary)


def _mean(values: list[float], lower: bool) -> Metric:
    if not values:
        return Metric(None, 0, skipped="no example has a reference answer")
    interval = bootstrap_ci(np.array(values), lambda total: float(total[0]) / len(values))
    return Metric(float(np.mean(values)), len(values), interval, higher_is_better=not lower)
