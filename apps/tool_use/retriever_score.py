"""How well tools are found: are all that the question needs among the first k, and how early do they come.

Sufficiency@k is 1 only when every right tool is among the first k: one that is missing fails the task. nDCG@k takes
every right tool as equally right; Recall@k is the share of them found; MRR the reciprocal rank of the first. Questions
without right tools are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from core.errors import ConfigError
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.figures import mean_interval
from core.evaluation.report import Report


def sufficiency(ranking: Sequence[str], gold: Sequence[str], k: int) -> float:
    """1 when all of `gold` are among the first `k` of `ranking`, else 0."""
    return float(set(gold) <= set(ranking[:k]))


def ndcg(ranking: Sequence[str], gold: Sequence[str], k: int) -> float:
    """Σ 1 / log₂(rank + 1) over the right tools among the first `k`, divided by the largest that it can be."""
    right = set(gold)
    gained = sum(1 / math.log2(rank + 1) for rank, name in enumerate(ranking[:k], 1) if name in right)
    return gained / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(right)) + 1))


def recall(ranking: Sequence[str], gold: Sequence[str], k: int) -> float:
    """Share of `gold` among the first `k`."""
    return len(set(gold) & set(ranking[:k])) / len(set(gold))


def reciprocal_rank(ranking: Sequence[str], gold: Sequence[str], k: int = 0) -> float:
    """1 / rank of the first right tool; 0 when none is in the ranking."""
    right = set(gold)
    return next((1 / rank for rank, name in enumerate(ranking, 1) if name in right), 0.0)


def sufficiency_rank(ranking: Sequence[str], gold: Sequence[str]) -> int:
    """The place, from 1, of the last right tool; one behind the ranking's end when it lacks one."""
    places = {name: rank for rank, name in enumerate(ranking, 1)}
    return max(places.get(name, len(ranking) + 1) for name in gold)


FIGURES = {"sufficiency": sufficiency, "ndcg": ndcg, "recall": recall, "mrr": reciprocal_rank}


class RetrievalEvaluator(BaseEvaluator):
    """Predictions are rankings of tool ids, best first; metrics are written figure@k, and mrr."""

    name = "tool_use"
    primary = "sufficiency@5"
    known = (
        "sufficiency@5", "sufficiency@10", "ndcg@5", "ndcg@10", "recall@1", "recall@5", "recall@10", "mrr",
        "sufficiency@1", "sufficiency@3", "ndcg@1", "ndcg@3",
    )  # fmt: skip

    def score(self, predictions: Sequence[Sequence[str]], examples: Sequence[Any]) -> Report:
        self.check(predictions, examples)
        counted = [(list(ranking), example) for ranking, example in zip(predictions, examples) if example.gold]
        if not counted:
            raise ConfigError("no question has right tools: there is nothing to score", where="data.eval")
        rows = [self._row(ranking, example) for ranking, example in counted]
        metrics = {name: mean_interval([row[name] for row in rows]) for name in self.metrics}
        signature = {"questions without right tools": len(examples) - len(counted)}
        worst = [row for row in rows if row[self.metrics[0]] < 100][:20]
        return Report(self.name, metrics, signature, rows, worst, self.metrics[0])

    def _row(self, ranking: list[str], example: Any) -> dict[str, Any]:
        row: dict[str, Any] = {"input": example.query, "reference": list(example.gold), "prediction": ranking[:10]}
        for name in self.metrics:
            figure, _, k = name.partition("@")
            row[name] = 100.0 * FIGURES[figure](ranking, example.gold, int(k or 0))
        return row
