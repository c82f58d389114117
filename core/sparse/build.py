"""The methods of this package as a recipe asks for them: `(model, options, BuildContext) -> model`."""

from __future__ import annotations

import dataclasses
from typing import Any

from core.config.registry import BuildContext
from core.config.schema import AdapterConfig
from core.models.topology import ROLES, ModelTopology
from core.sparse.spiel import SpielConfig


def spiel(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """A SpIEL adapter in the named maps, by default in every linear map of the blocks."""
    from peft import PeftModel, get_peft_model

    targets: Any = None
    if spec.targets != "all-linear":
        given = [spec.targets] if isinstance(spec.targets, str) else list(spec.targets)
        roles = [name for name in given if name in ROLES]
        targets = [name for name in given if name not in roles]
        targets += ModelTopology.of(model).targets(*roles) if roles else []
    config = SpielConfig(
        **dataclasses.asdict(options), target_modules=targets, modules_to_save=spec.modules_to_save or None,
        seed=context.seed, task_type="CAUSAL_LM" if "CausalLM" in type(model).__name__ else None,
    )  # fmt: skip
    if isinstance(model, PeftModel):
        model.add_adapter("default", config)
        return model
    return get_peft_model(model, config)
