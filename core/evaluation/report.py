"""What an evaluation found: metrics with their n and interval, how they were computed, and every example.

A metric that could not run is `skipped` with its reason, never zero and never silently absent.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json, write_text
from core.errors import DataError


@dataclass
class Metric:
    """One figure.

    Args:
        value: None when skipped. n: examples it rests on. ci95: bootstrap interval. skipped: the reason.
    """

    value: float | None
    n: int
    ci95: tuple[float, float] | None = None
    unit: str = ""
    skipped: str | None = None
    higher_is_better: bool = True

    def __str__(self) -> str:
        if self.value is None:
            return f"skipped: {self.skipped}"
        text = f"{self.value:.2f}{self.unit}"
        return f"{text} [{self.ci95[0]:.2f}, {self.ci95[1]:.2f}]" if self.ci95 else text


@dataclass
class Report:
    """Metrics, their signature (library, version, settings), one row an example, and the failures."""

    name: str
    metrics: dict[str, Metric]
    signature: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    primary: str = ""

    def value(self, metric: str | None = None) -> float | None:
        """The value of `metric`, by default the primary one; None when skipped or absent."""
        found = self.metrics.get(metric or self.primary)
        return None if found is None else found.value

    def save(self, folder: str | Path) -> None:
        """Write report.json and predictions.jsonl, each atomically."""
        folder = Path(folder)
        head = {k: v for k, v in asdict(self).items() if k != "rows"}
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in self.rows)
        write_text(folder / "predictions.jsonl", lines)
        write_json(folder / "report.json", head)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read what `save` wrote. Raises `GraftError` for a missing or torn file."""
        folder = Path(folder)
        head = read_json(folder / "report.json")
        try:
            metrics = {
                name: Metric(**{**m, "ci95": tuple(m["ci95"]) if m.get("ci95") else None})
                for name, m in head.pop("metrics").items()
            }
            path = folder / "predictions.jsonl"
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
            return cls(metrics=metrics, rows=rows, **head)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise DataError(f"not a report: {error}", file=folder / "report.json") from error

    def table(self, before: Report | None = None) -> str:
        """The metrics as text, beside those of `before` where it is given."""
        width = max((len(name) for name in self.metrics), default=6)
        head = f"{'metric':<{width}}  {'before':>22}  {'after':>22}  {'n':>6}" if before else ""
        lines = [head or f"{'metric':<{width}}  {'value':>24}  {'n':>6}"]
        for name, metric in self.metrics.items():
            if metric.value is None:
                lines.append(f"{name:<{width}}  {metric}")
            elif before:
                old = before.metrics.get(name)
                lines.append(f"{name:<{width}}  {str(old) if old else '-':>22}  {str(metric):>22}  {metric.n:>6}")
            else:
                lines.append(f"{name:<{width}}  {str(metric):>24}  {metric.n:>6}")
        return "\n".join(lines)
