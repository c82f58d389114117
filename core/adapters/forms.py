"""LoRA on linear maps that peft does not know: quantized ones and other forms.

A form that needs a wrapper of its own names it (`lora_layer`, a classmethod of the module's class); here a LoRA config
is told, and "all-linear" is spelt out, because peft's own list holds `nn.Linear` and `Conv1D` alone. No form is
imported.
"""

from __future__ import annotations

from typing import Any

from core.models.peft_registry import know_methods


def know_forms(config: Any, model: Any) -> Any:
    """A LoRA `config` that knows the forms in `model`; other configs, and models without forms, pass unchanged."""
    from peft import LoraConfig

    wrappers = {type(part): type(part).lora_layer() for part in model.modules() if hasattr(type(part), "lora_layer")}
    if not wrappers or not isinstance(config, LoraConfig):
        return config
    config._register_custom_module(wrappers)
    if config.target_modules == "all-linear":
        config.target_modules = linear_names(model)
    return config


def saved_config(folder: str, model: Any) -> Any:
    """The config of a saved adapter of peft's or ours, which knows the forms in `model`."""
    from peft import PeftConfig

    know_methods()
    return know_forms(PeftConfig.from_pretrained(folder), model)


def linear_names(model: Any) -> list[str]:
    """Names of all linear maps but the head."""
    from core.models.linear import is_linear_like

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [name for name, part in model.named_modules() if is_linear_like(part) and part is not head]
