"""Padding is known with a mask and without."""

from __future__ import annotations

import torch

from core.objectives.padding import tokens_that_count


def test_padding_of_packed_rows_is_what_follows_the_last_label():
    labels = torch.tensor([[-100, 5, -100, 7, -100, -100]])
    assert tokens_that_count({"labels": labels}).tolist() == [[1, 1, 1, 1, 0, 0]]
    mask = torch.tensor([[1, 0]])
    assert tokens_that_count({"attention_mask": mask, "labels": labels}) is mask
    assert tokens_that_count({}) is None
