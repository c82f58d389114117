"""The contract of every evaluator: predictions and examples in, a report out.

Predictions are data, so anybody's outputs can be scored by the same command; an evaluator never sees a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from core.errors import ConfigError, DataError, nearest
from core.evaluation.report import Report


class BaseEvaluator:
    """Subclasses set `name`, `primary`, `known` (metric names) and implement `score`.

    Args:
        metrics: which metrics to compute; None takes all that the field expects.
        options: the evaluator's own settings.
    """

    name: ClassVar[str] = ""
    primary: ClassVar[str] = ""
    known: ClassVar[tuple[str, ...]] = ()

    def __init__(self, metrics: Sequence[str] | None = None, **options: Any) -> None:
        for metric in metrics or ():
            if self.known and metric not in self.known:
                hint = " ".join(filter(None, [nearest(metric, self.known), f"known: {', '.join(self.known)}"]))
                raise ConfigError(f"unknown metric '{metric}' of {self.name}", hint=hint)
        self.metrics, self.options = list(metrics or self.known), options

    def score(self, predictions: Sequence[Any], examples: Sequence[Any]) -> Report:
        raise NotImplementedError(f"{type(self).__name__} has no score()")

    @staticmethod
    def check(predictions: Sequence[Any], examples: Sequence[Any]) -> None:
        """Raise `DataError` for an empty set, or for lengths that differ, naming the first index without a partner."""
        if len(predictions) != len(examples):
            index = min(len(predictions), len(examples))
            longer = "prediction" if len(predictions) > len(examples) else "example"
            raise DataError(
                f"{len(predictions)} predictions for {len(examples)} examples: {longer} {index} has no partner",
                hint="check for blank or split lines; one prediction belongs to each example, in order",
            )
        if not examples:
            raise DataError("the evaluation set is empty")
