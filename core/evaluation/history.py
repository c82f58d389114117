"""What metrics.jsonl tells, as curves: losses and scores over steps, stage by stage.

A resumed run writes some steps twice, and the later line counts; a new stage begins again at its first step and is
drawn behind the one before. Values that are not finite are counted, not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ABOUT_TIME = ("runtime", "per_second", "seconds", "samples", "steps", "epoch")


@dataclass
class History:
    """Curves by name as (step, value); where stages begin; and what could not be drawn.

    Args:
        train: loss of training. held_out: loss on held-out rows. scores: every other evaluated metric.
        stages: (first step, name), steps counted through all stages. last: the last value of every numeric key.
    """

    train: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[float, float]] = field(default_factory=list)
    scores: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    stages: list[tuple[float, str]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    not_finite: int = 0


def read_history(rows: Iterable[Mapping[str, Any]]) -> History:
    """Curves out of the lines of metrics.jsonl. A line without a numeric `step` is passed over."""
    history = History()
    merged: dict[str, dict[float, dict[str, Any]]] = {}
    order: list[str] = []
    for row in rows:
        step = row.get("step") if isinstance(row, Mapping) else None
        if not isinstance(step, (int, float)) or isinstance(step, bool):
            continue
        stage = str(row.get("stage", ""))
        if stage not in order:
            order.append(stage)
        merged.setdefault(stage, {}).setdefault(float(step), {}).update(row)
    offset = 0.0
    for stage in order:
        steps = merged[stage]
        history.stages.append((offset + min(steps), stage))
        for step in sorted(steps):
            _take(history, offset + step, steps[step])
        offset += max(steps)
    return history


def _take(history: History, step: float, row: Mapping[str, Any]) -> None:
    measured = row.get("eval")
    values = dict(row)
    if isinstance(measured, Mapping):
        values.update({f"eval_{name}": value for name, value in measured.items()})
    for key, value in values.items():
        if key == "step" or not _is_number(value):
            continue
        curve = _curve(history, key)
        if not math.isfinite(value):
            history.not_finite += curve is not None
            continue
        history.last[key] = float(value)
        if curve is not None:
            curve.append((step, float(value)))


def _curve(history: History, key: str) -> list[tuple[float, float]] | None:
    if key in ("loss", "train_loss"):
        return history.train
    for prefix in ("eval_", "eval/", "dev_"):
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            if name == "loss":
                return history.held_out
            if any(word in name for word in _ABOUT_TIME):
                return None
            return history.scores.setdefault(name, [])
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
