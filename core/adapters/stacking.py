"""Adapters in sequence: those that were trained before stay frozen, the last one trains (Pfeiffer et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import ConfigError


def stack(model: Any, names: Sequence[str], train: str | None = None) -> Any:
    """Make the adapters `names` active in this order; only `train`, by default the last, has gradients.

    They stay so when adapters are switched off and on again. Returns the model.

    Raises:
        ConfigError: a name that the model has no adapter for.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    missing = [name for name in names if name not in model.peft_config]
    if missing or not names:
        raise ConfigError(
            f"no adapter '{missing[0]}'" if missing else "no adapter is named",
            where="stack",
            hint=f"the model has: {', '.join(model.peft_config)}",
        )
    train = names[-1] if train is None else train
    frozen = [name for name in names if name != train]
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.frozen_peft_weight_names = {name: module.adapter_layer_names for name in frozen}
    model.base_model.set_adapter(list(names))
    for name in frozen:
        model.set_requires_grad(name, requires_grad=False)
    return model
