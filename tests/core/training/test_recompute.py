"""Blocks computed again: the same gradients with dropout, frozen embeddings and accumulation, and inputs are let go."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.training.recompute import Recomputed, recompute_from_host


def model_of(dropout: float):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, attention_dropout=dropout, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    model.model.embed_tokens.weight.requires_grad_(False)
    return model


def gradients(model):
    ids = torch.arange(12).view(2, 6)
    model.zero_grad()
    torch.manual_seed(1)
    for _ in range(2):
        model(ids, labels=ids, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients(dropout, bf16, monkeypatch):
    model = model_of(dropout)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        wanted = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    recompute_from_host(model, list(model.model.layers), torch.device("cpu"))
    taken = []
    original = Recomputed.__call__
    monkeypatch.setattr(Recomputed, "__call__", lambda self, *a: taken.append(1) or original(self, *a))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = gradients(model)
    assert len(taken) == 6 and found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name
    assert model.model.layers[0]._gradient_checkpointing_func.last is None


def test_without_gradients_nothing_is_kept():
    model = model_of(0.0)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    recompute_from_host(model, list(model.model.layers), torch.device("cpu"))
    with torch.no_grad():
        model(torch.arange(4)[None], use_cache=False)
    assert model.model.layers[0]._gradient_checkpointing_func.last is None


@pytest.mark.gpu
def test_inputs_that_came_back_are_let_go_block_by_block():
    device, mib = torch.device("cuda"), 2**20
    weights = [torch.zeros(1, device=device, requires_grad=True) for _ in range(16)]
    recomputed = Recomputed(device, random=False)
    hidden = torch.randn(64, mib // 4, device=device)  # 64 MiB
    for weight in weights:
        hidden = recomputed(lambda x, w=weight: x + w, hidden)
    loss = hidden.mean()
    del hidden
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss.backward()
    assert torch.cuda.max_memory_allocated() - before < 6 * 64 * mib
    assert all(weight.grad.item() == pytest.approx(1, rel=1e-3) for weight in weights)
