"""A QLoRA step on our NF4 against bitsandbytes' NF4: time and peak memory, Llama-3-8B's shape.

One decoder of 32 layers of hidden size 4096 is built on the device layer by layer, random weights, rank 16 on every
linear map, 4 sequences of 1024 tokens, activations recomputed. Both bases hold the same codes.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

TIME, MEMORY = 1.05, 1.05
BATCH, LENGTH, RANK = 4, 1024, 16


def measure(setting: Setting) -> Measured:
    import torch

    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device")
    layers = 4 if setting.quick else 32
    found = {"graft:nf4": _arm("graft:nf4", layers)}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        return Measured(None, None, baseline=f"unavailable: {error}", details=found)
    found["nf4"] = _arm("nf4", layers)
    ours, peer = found["graft:nf4"], found["nf4"]
    slower, larger = ours["ms"] / peer["ms"], ours["peak GiB"] / peer["peak GiB"]
    return Measured(
        round(slower, 3),
        slower <= TIME and larger <= MEMORY,
        baseline={"bitsandbytes": peer},
        chance="1: the same time",
        details={"ours": ours, "memory ratio": round(larger, 3), "layers": layers, "gpu": torch.cuda.get_device_name()},
    )


def _arm(form: str, layers: int) -> dict[str, Any]:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    model = _adapted(form, layers)
    torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    ids = torch.randint(0, 32000, (BATCH, LENGTH), device="cuda")
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    base = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    result = {
        "ms": round(statistics.median(times[2:]), 1),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "base GiB": round(base / 2**30, 2),
    }
    del model, optimizer
    return result


def _adapted(form: str, layers: int) -> Any:
    """The model with its base in `form`, each layer quantized before the next is made, and a LoRA adapter."""
    import torch
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    from core.adapters.attach import attach
    from core.quantization import prepare_for_training

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for name, part in list(model.named_modules()):
        if isinstance(part, torch.nn.Linear) and not name.endswith("lm_head"):
            dense = torch.nn.Linear(
                part.in_features, part.out_features, bias=False, device="cuda", dtype=torch.bfloat16
            )
            model.set_submodule(name, _held(dense, form))
    for name, part in list(model.named_modules()):
        for key, tensor in list(part.named_parameters(recurse=False)):
            if tensor.is_meta:
                made = torch.empty(tensor.shape, device="cuda", dtype=torch.bfloat16).normal_(0, 0.02)
                setattr(part, key, torch.nn.Parameter(made.add_(1) if "norm" in name else made, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to("cuda")
    prepare_for_training(model, gradient_checkpointing=True)
    adapted = attach(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"), 0)
    return adapted.to("cuda").train()


def _held(dense: Any, form: str) -> Any:
    import torch

    if form == "graft:nf4":
        from core.quantization import QuantizedLinear, parse

        return QuantizedLinear.from_linear(dense, parse("nf4"))
    import bitsandbytes

    made = bitsandbytes.nn.Linear4bit(
        dense.in_features, dense.out_features, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True,
        quant_type="nf4",
    )  # fmt: skip
    made.weight = bitsandbytes.nn.Params4bit(
        dense.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    return made.to("cuda")


BAR = Bar(
    "quantization.qlora",
    "Time of a QLoRA step on our NF4 over bitsandbytes', 8B shape",
    "ratio",
    f"≤ {TIME:g}, and peak memory ≤ {MEMORY:g} of it",
    "gpu",
    4,
    measure,
)
