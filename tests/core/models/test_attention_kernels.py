"""Attention without cuDNN's plans: which kernels are left, and that nothing else changes."""

from __future__ import annotations

import importlib
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import pytest
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


@pytest.mark.parametrize("trainer", ["apps.embeddings.trainer", "apps.tool_use.retriever_trainer"])
def test_whole_steps_of_text_encoders_run_without_plans(trainer):
    """Their batches have a new length every time, and some encode again in the backward pass."""
    module = importlib.import_module(trainer)
    cls = next(c for name, c in vars(module).items() if name in ("ContrastiveTrainer", "RetrieverTrainer"))
    inside, seen = [], []

    @contextmanager
    def without(device):
        inside.append(device)
        yield
        inside.pop()

    class Probe(cls):
        def __init__(self):
            self.args = SimpleNamespace(device=torch.device("cpu"))
            self.accelerator = SimpleNamespace(unwrap_model=lambda model: model)
            self.useful_tokens, self.objective, self.keep_tokens = 0, None, 0

        def _prepare_inputs(self, inputs):
            return inputs

        def compute_loss_context_manager(self):
            return nullcontext()

    def step(*_):
        seen.append(list(inside))

    with (
        patch(f"{trainer}.without_planning", without),
        patch("apps.embeddings.trainer.step", step),
        patch("transformers.Trainer.training_step", step),
    ):
        Probe().training_step(torch.nn.Identity(), {"useful": 1})
    assert seen == [[torch.device("cpu")]] and not inside
