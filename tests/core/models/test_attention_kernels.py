"""Attention without cuDNN's plans: which kernels are left, and that nothing else changes."""

from __future__ import annotations

from unittest.mock import patch

import torch

from core.models.attention import without_planning


def test_on_a_cpu_nothing_changes():
    query = torch.randn(1, 2, 5, 8)
    plain = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    with without_planning(torch.device("cpu")):
        assert torch.equal(plain, torch.nn.functional.scaled_dot_product_attention(query, query, query))


def test_on_a_gpu_cudnn_is_left_out_and_comes_back():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with without_planning(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_padded_batches_are_known_by_their_mask():
    from core.training.trainer import attention_for

    with patch("core.training.trainer.without_planning") as without:
        attention_for({"input_ids": 0, "position_ids": 0}, torch.device("cuda"))
        assert not without.called
        attention_for({"input_ids": 0, "attention_mask": 0}, torch.device("cuda"))
        assert without.called
