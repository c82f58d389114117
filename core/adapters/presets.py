"""The four adapter families of LLM-Adapters (Hu et al. 2023) with their published settings, placed by the topology."""

from __future__ import annotations

from typing import Any

from core.errors import ConfigError, UnsupportedError, nearest
from core.models.topology import ModelTopology

PRESETS = ("series", "series_after_mlp", "parallel", "lora", "prefix")


def adapter_preset(name: str, model: Any, r: int | None = None) -> Any:
    """A peft config for `model`.

    Args:
        name: series (r 256 before gate and up, as the published commands place it), series_after_mlp (behind down, the
            best place in the paper), parallel (r 256 beside up and down), lora (r 32, alpha 64 on q, k, v, up, down),
            prefix (10 virtual tokens).
        r: another rank, or number of virtual tokens; LoRA's alpha stays twice its rank.

    Raises:
        ConfigError: an unknown preset. UnsupportedModelError: a family without a topology.
        UnsupportedError: a prefix for a model that is no causal language model.
    """
    from peft import LoraConfig, PrefixTuningConfig

    from core.adapters.attach import task_type
    from core.adapters.bottleneck import BottleneckConfig

    if name not in PRESETS:
        hint = " ".join(filter(None, [nearest(name, PRESETS), f"known: {', '.join(PRESETS)}"]))
        raise ConfigError(f"unknown adapter preset '{name}'", hint=hint)
    topology, task = ModelTopology.of(model), task_type(model)
    if name == "prefix":
        if task is None:
            raise UnsupportedError(
                f"peft lays no prefix before a {type(model).__name__}", where="prefix",
                hint="it needs a causal language model; take another preset",
            )  # fmt: skip
        return PrefixTuningConfig(num_virtual_tokens=r or 10, task_type=task)
    if name == "lora":
        targets, rank = topology.targets("q", "k", "v", "up", "down"), r or 32
        transposed = topology.family == "gpt2"
        return LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=transposed, task_type=task
        )
    roles = {"series": ("gate", "up"), "series_after_mlp": ("down",), "parallel": ("up", "down")}[name]
    mode = "parallel" if name == "parallel" else "auto"
    return BottleneckConfig(r=r or 256, mode=mode, target_modules=topology.targets(*roles), task_type=task)
