"""What a bar is, and where bars are found.

A module in `bars/` holds one `BAR`. Its `measure` gets a `Setting` and returns a `Measured`, or raises `Unavailable`
when something it needs is not on this machine.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent


class Unavailable(Exception):
    """Something the measurement needs is not here; the message says what."""


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Args:
        quick: the short form. work: an empty folder of the bar's own.
        repeats, peers: of a bar that runs trainers in turns, other than its own.
    """

    quick: bool
    work: Path
    repeats: int | None = None
    peers: tuple[str, ...] | None = None


@dataclass
class Measured:
    """What was found.

    Args:
        value: the figure, in the bar's unit.
        passed: whether it meets the target; None while a part that decides is missing.
        baseline: the peer's or the ablation's figure, or why it is unavailable.
        chance: the figure that no skill at all would reach.
        details: everything else worth keeping.
    """

    value: float | None
    passed: bool | None
    baseline: Any = None
    chance: Any = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """A promise with a number.

    Args:
        id: "<area>.<name>". title: one line. unit: of the value. target: the promise, in words.
        needs: cpu or gpu. minutes: of the full form.
        small: minutes of a smaller form for a CPU, for GPU bars that have one.
        measure: does it.
        judge: decides again on a result, for bars whose peers are measured by several commands.
    """

    id: str
    title: str
    unit: str
    target: str
    needs: Literal["cpu", "gpu"]
    minutes: float
    measure: Callable[[Setting], Measured]
    judge: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    small: float | None = None


def load_bars() -> dict[str, Bar]:
    """Every bar, by id."""
    from benchmarks import bars

    found = [importlib.import_module(f"benchmarks.bars.{m.name}").BAR for m in pkgutil.iter_modules(bars.__path__)]
    return {bar.id: bar for bar in sorted(found, key=lambda bar: bar.id)}


def find(bars: dict[str, Bar], names: Iterable[str]) -> list[Bar]:
    """The bars with these ids, of these areas, or all; empty when a name matches nothing."""
    chosen: list[Bar] = []
    for name in names:
        matching = [bar for bar in bars.values() if name in (bar.id, bar.id.partition(".")[0], "all")]
        if not matching:
            return []
        chosen += [bar for bar in matching if bar not in chosen]
    return chosen
