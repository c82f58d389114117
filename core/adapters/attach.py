"""Lay one adapter after another on a model.

The first one makes the model a `PeftModel`, the next are added beside it. The one that trains is always called
"default"; adapters that were trained before keep the name of their folder and stay frozen.
"""

from __future__ import annotations

from typing import Any

from core.errors import ConfigError, nearest


def attach(model: Any, config: Any, seed: int = 0, name: str = "default") -> Any:
    """`model` with the adapter of a peft `config`, its random weights from `seed`.

    The caller's random state is left as it was.

    Raises:
        ConfigError: targets that no module matches, with the closest module names.
    """
    import torch
    from peft import PeftModel, get_peft_model

    from core.adapters.forms import know_forms

    config = know_forms(config, model)
    config.task_type = config.task_type or task_type(model)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
                return model
            return get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise ConfigError(
            str(error).splitlines()[0], where="model.adapters", hint=closest_targets(model, config.target_modules)
        ) from error


def task_type(model: Any) -> str | None:
    """What peft calls the model's task, where its wrapper for the task is of use."""
    return "CAUSAL_LM" if "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__ else None


def closest_targets(model: Any, targets: Any) -> str:
    """A hint that names the linear modules of `model`, the closest to each target first."""
    from core.models.linear import is_linear_like

    endings = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear_like(module)})
    wanted = [targets] if isinstance(targets, str) else list(targets or [])
    close = [hint for name in wanted if (hint := nearest(name, endings))]
    return " ".join([*close, f"linear modules here: {', '.join(endings)}"])
