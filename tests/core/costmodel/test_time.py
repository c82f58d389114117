"""Seconds of a step: close to what was measured, and moving as they must."""

from __future__ import annotations

import pytest

from core.costmodel.hardware import DEVICES, GIB
from core.costmodel.memory import predict_memory
from core.costmodel.shape import ModelShape
from core.costmodel.time import predict_time, tokens_a_second
from core.costmodel.workload import Workload


def llama(hidden, ffn, layers, heads, kv, vocabulary, tied=False):
    return ModelShape.from_config(
        {
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocabulary,
            "tie_word_embeddings": tied,
        }
    )  # fmt: skip


ONE_B = llama(2048, 5632, 22, 32, 4, 32000)
THREE_B = llama(3072, 8192, 28, 24, 8, 128256, True)
EIGHT_B = llama(4096, 14336, 32, 32, 8, 128256)
FUSED = frozenset({"head", "layers", "lora"})
LORA = Workload(EIGHT_B, 2, 4096, accumulation=4, rank=16, targets=tuple(EIGHT_B.linears))
AGAIN = {"checkpointing": "full", "offloaded": True}

# Tokens a second: Trainer and peft as they come, a trainer with fused kernels, and others as they publish them.
MEASURED = {
    "8B LoRA, plain": (LORA, "h200", 10600),
    "8B LoRA, fused": (LORA.with_(fused=FUSED), "h200", 15000),
    "8B LoRA, fused, recomputed": (LORA.with_(fused=FUSED, **AGAIN), "h200", 10500),
    "8B on NF4, fused": (LORA.with_(fused=FUSED, quantization="nf4"), "h200", 14700),
    "8B on NF4, fused, recomputed": (LORA.with_(fused=FUSED, quantization="nf4", **AGAIN), "h200", 10350),
    "1.1B in full, plain": (Workload(ONE_B, 8, 2048), "h200", 54600),
    "8B LoRA, NeMo AutoModel": (LORA.with_(fused=FUSED), "h100", 12473),
    "3B in full, packed, torchtune": (Workload(THREE_B, 2, 4096), "a100-80", 7075),
}


@pytest.mark.parametrize("name", MEASURED)
def test_measured_speeds_are_met_within_an_eighth(name):
    work, device, measured = MEASURED[name]
    assert tokens_a_second(work, DEVICES[device]) == pytest.approx(measured, rel=0.125)


# (shape, micro, length, accumulation, rank, recomputed, seconds of a step on an H100): short steps wait for the host
SHORT = [
    (llama(4096, 11264, 23, 32, 16, 151936), 1, 512, 1, 16, True, 0.348),
    (llama(2048, 6144, 10, 32, 16, 32000, True), 4, 1024, 1, 64, False, 0.0997),
    (llama(512, 1408, 7, 8, 4, 64000, True), 1, 512, 1, 0, True, 0.0471),
]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: f"{case[5]}-{case[4]}")
def test_short_steps_take_what_the_host_takes(case):
    shape, micro, length, accumulation, rank, recomputed, measured = case
    targets = tuple(shape.linears) if rank else ()
    work = Workload(shape, micro, length, accumulation=accumulation, rank=rank, targets=targets, fused=FUSED)
    step = predict_time(work.with_(**(AGAIN if recomputed else {})), DEVICES["h100"])
    assert step.seconds == step.host == pytest.approx(measured, rel=0.15)


def test_a_measured_peak_of_full_tuning_is_met():
    """1.1B in bf16 with moments in bf16, 8 × 2048 tokens, plain kernels: 41.6 GiB were measured."""
    memory = predict_memory(Workload(ONE_B, 8, 2048))
    in_bf16 = memory.total - memory.optimizer + 4 * ONE_B.parameters
    assert in_bf16 / GIB == pytest.approx(41.6, rel=0.01)


def test_more_work_takes_longer():
    device = DEVICES["h100"]
    base = predict_time(LORA, device).seconds
    assert predict_time(LORA.with_(accumulation=8), device).seconds == pytest.approx(2 * base, rel=0.01)
    assert predict_time(LORA.with_(fused=FUSED), device).seconds < base
    assert predict_time(LORA.with_(checkpointing="selective"), device).seconds > base
    assert predict_time(LORA, DEVICES["a100-80"]).seconds > 2 * base
    assert predict_time(LORA.with_(rank=0, targets=()), device).seconds > base * 1.1
