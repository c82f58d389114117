"""A dry run counts what a step makes: a case worked out by hand, and the cost model against it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.dry_run import LiveBytes, peak_bytes
from core.costmodel.memory import predict_memory
from core.costmodel.shape import ModelShape
from core.costmodel.workload import Workload

CONFIG = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000, "dtype": "bfloat16",
}  # fmt: skip


def test_live_bytes_are_those_of_tensors_that_live():
    with FakeTensorMode(), LiveBytes() as live:
        first = torch.empty(100, dtype=torch.float32)
        second = first * 2
        view = second[:10]
        assert live.now == 800 and live.peak == 800
        del first, second
        assert live.now == 400, "a view keeps its storage"
        del view
        assert live.now == 0 and live.peak == 800


@pytest.mark.parametrize(
    ("method", "checkpoint", "accumulation"),
    [("full", "none", 1), ("full", "full", 2), ("lora", "none", 1), ("lora", "full", 1), ("qlora", "none", 2)],
)
def test_predictions_are_close_and_never_far_below(method, checkpoint, accumulation):
    shape = ModelShape.from_config(CONFIG)
    measured = peak_bytes(
        CONFIG, method=method, micro=2, accumulation=accumulation, length=1024, rank=16, checkpoint=checkpoint
    )
    full = method == "full"
    work = Workload(
        shape, 2, 1024, accumulation, rank=0 if full else 16, targets=() if full else tuple(shape.linears),
        quantization="nf4" if method == "qlora" else "none", stored=4 if full else 2, compute=2,
        checkpointing=checkpoint, offloaded=True, fused=frozenset({"head", "layers", "lora"}),
    )  # fmt: skip
    assert -0.02 < predict_memory(work, gpu=False).total / measured - 1 < 0.06
