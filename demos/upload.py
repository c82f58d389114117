"""The Evaluate tab of apps whose verifier judges: an uploaded JSONL of tasks with predictions becomes a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.data.reading import json_lines
from core.errors import AppInputError, DataError, GraftError
from demos import look

ROWS_CHECKED = 100
"""Most rows of an upload that a page judges."""

Scored = tuple[str, list[list[Any]], list[list[Any]], str | None]
"""Banner, metric rows, task rows, path of the report."""


def score_upload(upload: str | None, evaluator: Any, example_from: Callable[..., Any], fields: str, row: str) -> Scored:
    """Judge the rows of a file.

    Args:
        evaluator: of the app. example_from: `(row, file=, line=)` → one task. fields: those that a row has, in words.
        row: the name under which a report's rows hold the short verdict.
    """
    try:
        if not upload:
            hint = f"upload JSONL: {fields}, prediction (a text or a list)"
            raise AppInputError("nothing to score yet", hint=hint)
        name, tasks, predictions = Path(upload).name, [], []
        for number, given in json_lines(Path(upload), None):
            if "prediction" not in given:
                raise DataError("the row has no prediction", file=name, line=number, field="prediction")
            predictions.append(given.pop("prediction"))
            tasks.append(example_from(given, file=name, line=number))
        if len(tasks) > ROWS_CHECKED:
            raise AppInputError(
                f"{len(tasks)} rows; this page judges at most {ROWS_CHECKED}",
                hint=f"graft eval {evaluator.app} --data … --predictions …",
            )
        report = evaluator.score(predictions, tasks)
    except GraftError as error:
        return look.banner(error), [], [], None
    folder = tempfile.mkdtemp(prefix="graft-report-")
    report.save(folder)
    metrics = [[name, str(metric), metric.n] for name, metric in report.metrics.items()]
    rows = [[r["id"], r.get(row, ""), r.get("verdict", "")] for r in report.rows]
    return "", metrics, rows, str(Path(folder) / "report.json")
