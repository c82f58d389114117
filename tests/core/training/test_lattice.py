"""Every registered loss: one step is the same however its batch is cut, packed, recomputed or spread."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lattice import CLIP, Cell, by_hand, cells, difference, on_two_processes, step
from core.objectives.losses import LOSSES, CrossEntropy

EVERY = [cell for loss in LOSSES.names() for cell in cells(loss, full=False)]


@pytest.fixture(scope="module")
def reference():
    known = {}

    def wanted(cell):
        key = (cell.loss, cell.model, cell.clip)
        if key not in known:
            known[key] = by_hand(*key)
        return known[key]

    return wanted


@pytest.mark.parametrize("cell", EVERY, ids=str)
def test_cell(cell, reference, tmp_path):
    assert difference(step(cell, tmp_path), reference(cell)) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES.names())
def test_all_combinations(loss, reference, tmp_path):
    for cell in cells(loss, full=True):
        assert difference(step(cell, tmp_path), reference(cell)) < 2e-5, cell


def test_two_processes(tmp_path):
    found = on_two_processes(LOSSES.names(), tmp_path)
    assert len(found) > len(LOSSES.names()) and max(found.values()) < 2e-5, found


def test_a_mean_of_means_is_found_out(reference, tmp_path, monkeypatch):
    """The lattice can fail: a loss that divides each micro-batch by its own count shows in the first cell."""
    plain = CrossEntropy.__call__

    def mean(self, model, inputs, labels, places=None):
        total, count = plain(self, model, inputs, labels, places)
        return total / count.clamp(min=1) * 10, count

    cell = Cell("cross_entropy", "full", 4, 2)
    wanted = reference(cell)
    monkeypatch.setattr(CrossEntropy, "__call__", mean)
    assert difference(step(cell, tmp_path), wanted) > 0.05


def test_the_reference_moves_the_weights_and_is_clipped():
    free, clipped = (by_hand("cross_entropy", "full", clip) for clip in (0.0, CLIP["full"]))
    assert torch.count_nonzero(free) > 1000 and clipped.norm() < 0.9 * free.norm()
