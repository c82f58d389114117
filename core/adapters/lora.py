"""LoRA, rsLoRA and DoRA as a recipe asks for them; the layers are peft's own."""

from __future__ import annotations

from typing import Any

from core.config.registry import BuildContext
from core.config.schema import AdapterConfig


def build(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """`model` with low-rank factors on its targets. Raises `ConfigError` when no module matches them."""
    from peft import LoraConfig

    from core.adapters.attach import attach

    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.effective_alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.targets,
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        modules_to_save=spec.modules_to_save or None,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return attach(model, config, context.seed)
