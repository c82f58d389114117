"""The sizes of a step: every row counts, however many processes share them."""

from __future__ import annotations

import pytest

from core.config.load import recipe_from
from core.data.dataset import EncodedDataset
from core.data.encode import Encoded, EncodeStats
from core.training.prepare import step_sizes
from core.training.trainer import EpochSampler


def sizes(rows: int, processes: int, **train):
    recipe = recipe_from(
        {
            "app": "translation",
            "model": {"path": "embedded"},
            "data": {"train": [{"reader": "embedded"}]},
            "method": "translation.parallel",
            "train": train,
        }
    )
    dataset = EncodedDataset([Encoded([1, 2], [-100, 2])] * rows)
    return step_sizes(recipe, dataset, EncodeStats(rows=rows, tokens=2 * rows, trained=rows), 100, "cpu", processes)


@pytest.mark.parametrize(("rows", "processes", "steps"), [(16, 1, 2), (17, 1, 3), (17, 2, 3), (16, 2, 2), (9, 4, 2)])
def test_rows_that_do_not_divide_by_the_processes_have_their_step(rows, processes, steps):
    assert sizes(rows, processes, batch={"size": 8, "micro": 1})["steps"] == steps


def test_items_without_loss_stay_at_the_end():
    order = list(EpochSampler(12, 0, blanks=3))
    assert order[9:] == [9, 10, 11] and sorted(order[:9]) == list(range(9)) != order[:9]
