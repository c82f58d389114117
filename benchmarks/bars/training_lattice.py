"""Every registered loss gives the same step in every cell of the lattice."""

from __future__ import annotations

from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.lattice import by_hand, cells, difference, on_two_processes, step

TOLERANCE = 2e-5


def measure(setting: Setting) -> Measured:
    from core.objectives.losses import LOSSES

    worst, where, count, over = 0.0, "", 0, []
    for loss in LOSSES.names():
        references: dict[tuple[str, float], Any] = {}
        for cell in cells(loss, full=not setting.quick):
            key = (cell.model, cell.clip)
            if key not in references:
                references[key] = by_hand(loss, *key)
            wanted = references[key]
            found = difference(step(cell, setting.work), wanted)
            count += 1
            if found > worst:
                worst, where = found, str(cell)
            if not found <= TOLERANCE:
                over.append(f"{cell}: {found:.1e}")
    for name, found in on_two_processes(LOSSES.names(), setting.work).items():
        count += 1
        if found > worst:
            worst, where = found, f"{name} on two processes"
        if not found <= TOLERANCE:
            over.append(f"{name} on two processes: {found:.1e}")
    details = {"losses": LOSSES.names(), "cells": count, "worst cell": where, "over": over}
    return Measured(worst, not over, chance="a mean of means is off by 0.1 to 1", details=details)


BAR = Bar(
    id="training.lattice",
    title="a step is the same however its batch is cut, packed, recomputed or spread",
    unit="largest deviation of a weight's change, relative to the largest change",
    target=f"<= {TOLERANCE:g} in every cell, fp32",
    needs="cpu",
    minutes=4,
    measure=measure,
)
