"""Compose the model of a stage: the base, then its adapters."""

from __future__ import annotations

from typing import Any

from core.config.schema import AdapterConfig
from core.errors import ConfigError


def add_adapters(model: Any, adapters: list[AdapterConfig], seed: int = 0) -> Any:
    """`model` with LoRA adapters through peft; unchanged when the list is empty.

    Args:
        seed: of the random factors, equal for equal seeds; the caller's random state is left as it was.

    Raises:
        ConfigError: targets that no module matches, with the closest module names.
    """
    if not adapters:
        return model
    if len(adapters) > 1:
        raise ConfigError("one adapter is supported", where="model.adapters", hint="keep one entry")
    import torch
    from peft import LoraConfig, get_peft_model

    spec = adapters[0]
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.effective_alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.targets,
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        modules_to_save=spec.modules_to_save or None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(str(error).splitlines()[0], where="model.adapters", hint=_closest(model, spec)) from error


def _closest(model: Any, spec: AdapterConfig) -> str | None:
    from core.errors import nearest
    from core.models.linear import is_linear_like

    endings = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear_like(module)})
    wanted = spec.targets if isinstance(spec.targets, list) else [spec.targets]
    close = [hint for name in wanted if (hint := nearest(name, endings))]
    return " ".join([*close, f"linear modules here: {', '.join(endings)}"])


def merged_in_memory(model: Any) -> Any:
    """The plain model with its adapters folded in; a model without adapters as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def parameter_counts(model: Any) -> dict[str, int]:
    """All parameters and those that train; tied weights count once."""
    total = sum(p.numel() for p in model.parameters())
    return {"parameters": total, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
