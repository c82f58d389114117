"""Every registered loss, and every loss over pairs, gives the same step in every cell of the lattice."""

from __future__ import annotations

from typing import Any

from benchmarks import lattice_pairs
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.lattice import by_hand, cells, difference, on_two_processes, step

TOLERANCE = 2e-5


def measure(setting: Setting) -> Measured:
    from core.objectives.losses import LOSSES

    found: dict[str, float] = {}
    references: dict[tuple[str, str, float], Any] = {}
    for loss in LOSSES.names():
        for cell in cells(loss, full=not setting.quick):
            key = (cell.loss, cell.model, cell.clip)
            if key not in references:
                references[key] = by_hand(*key)
            found[str(cell)] = difference(step(cell, setting.work), references[key])
    found |= {f"{name} on two processes": off for name, off in on_two_processes(LOSSES.names(), setting.work).items()}
    found |= over_pairs(setting)
    over = [f"{cell}: {off:.1e}" for cell, off in found.items() if not off <= TOLERANCE]
    worst = max(found, key=lambda cell: found[cell])
    losses = [*LOSSES.names(), *lattice_pairs.OPTIONS]
    details = {"losses": losses, "cells": len(found), "worst cell": worst, "over": over}
    return Measured(found[worst], not over, chance="a mean of means is off by 0.1 to 1", details=details)


def over_pairs(setting: Setting) -> dict[str, float]:
    """Cell → deviation, for losses over pairs of answers."""
    found, references = {}, {}
    for method in lattice_pairs.OPTIONS:
        for cell in lattice_pairs.cells(method, full=not setting.quick):
            key = (method, cell.kind)
            if key not in references:
                references[key] = lattice_pairs.by_hand(*key)
            change, _ = lattice_pairs.change(lattice_pairs.trainer_of(setting.work, cell))
            found[str(cell)] = difference(change, references[key])
    for method, change in lattice_pairs.on_two_processes(setting.work).items():
        found[f"{method} on two processes"] = difference(change, references[method, "lora"])
    return found


BAR = Bar(
    id="training.lattice",
    title="a step is the same however its batch is cut, packed, recomputed or spread",
    unit="largest deviation of a weight's change, relative to the largest change",
    target=f"<= {TOLERANCE:g} in every cell, fp32",
    needs="cpu",
    minutes=8,
    measure=measure,
)
