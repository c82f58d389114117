"""Counting attention whose query heads share keys: as with a key for each."""

from __future__ import annotations

import pytest
import torch

from core.sparse.flops import flop_counter

aten = torch.ops.aten


def empty(*shape):
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("kind", ["efficient", "flash", "cudnn"])
def test_shared_heads_count_as_their_own(kind):
    counted = flop_counter().flop_registry
    forward, backward = (getattr(aten, f"_scaled_dot_product_{kind}_attention{way}") for way in ("", "_backward"))
    query, shared, gradient = empty(2, 6, 10, 8), empty(2, 2, 12, 8), empty(2, 6, 10, 8)
    product = 2 * 2 * 6 * 10 * 12 * 8
    assert counted[forward](query, shared, shared, out_val=None) == 2 * product
    # the scores again, then four products: of values, weights, queries and keys
    assert counted[backward](gradient, query, shared, shared, out_val=None) == 5 * product


def test_packed_rows_count_document_by_document():
    counted = flop_counter().flop_registry
    borders = torch.tensor([0, 3, 10], dtype=torch.int32)
    query, shared = torch.zeros(10, 6, 8), torch.zeros(10, 2, 8)
    found = counted[aten._flash_attention_forward](query, shared, shared, borders, borders, 7, 7, out_val=None)
    assert found == 2 * 2 * 6 * 8 * (3 * 3 + 7 * 7)


def test_everything_else_is_counted_as_torch_does():
    with flop_counter() as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert counter.get_total_flops() == 2 * 3 * 4 * 5
