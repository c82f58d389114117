"""Adapters: published parameter counts, identities, inverses, merging."""

from __future__ import annotations

from typing import Any

from benchmarks.method_checks.models import far, llama, logits

COUNTS = {"sequential": 894_528, "sequential and invertible": 1_190_592, "LoRA r 8": 294_912}


def counts() -> tuple[float, float]:
    """Trainable parameters on an encoder of BERT's base size, off the published ones."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from core.adapters import SeqBottleneckConfig

    configs: dict[str, Any] = {
        "sequential": SeqBottleneckConfig(),
        "sequential and invertible": SeqBottleneckConfig(invertible="nice"),
        "LoRA r 8": LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]),
    }
    off = 0
    for name, config in configs.items():
        with torch.device("meta"):
            model = transformers.BertForMaskedLM(transformers.BertConfig())
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
        off += abs(adapted.get_nb_trainable_parameters()[0] - COUNTS[name])
    return off, 0


def identity() -> tuple[float, float]:
    """Series and parallel adapters before their first step."""
    from peft import get_peft_model

    from core.adapters import adapter_preset

    base = logits(llama())
    return max(
        far(logits(get_peft_model(llama(), adapter_preset(name, llama(), 5)).eval()), base)
        for name in ("series", "series_after_mlp", "parallel")
    ), 0.0


def merged() -> tuple[float, float]:
    """Bottlenecks without an activation, beside the base and folded in."""
    import torch
    from peft import get_peft_model

    from core.adapters import BottleneckConfig

    worst = 0.0
    for mode in ("series_in", "series_out", "parallel"):
        model = get_peft_model(llama(), BottleneckConfig(r=3, act=None, mode=mode, init="bert")).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bottleneck_" in name:
                    parameter.mul_(3)
        apart = logits(model)
        worst = max(worst, far(logits(model.merge_and_unload()), apart) / float(apart.abs().max()))
    return worst, 1e-5


def inverse() -> tuple[float, float]:
    """The coupling at the embeddings, there and back."""
    import torch

    from core.adapters.seq_bottleneck import NiceCoupling

    torch.manual_seed(0)
    coupling, e = NiceCoupling(16, 2, "relu"), torch.randn(3, 7, 16)
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.mul_(20)
        return far(coupling.inverse(coupling(e)), e), 1e-6


CHECKS = {
    "adapter parameters 894,528 / 1,190,592 / 294,912": counts,
    "an adapter starts as the identity": identity,
    "a linear adapter folds into its base": merged,
    "the invertible adapter is undone": inverse,
}
