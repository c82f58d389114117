"""Adapters in sequence: those that were trained before stay frozen, the last one trains (Pfeiffer et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json
from core.errors import ConfigError

ORDER = "stack.json"


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


def attach_frozen(model: Any, folder: str, name: str) -> Any:
    """A saved adapter on `model`, frozen, under `name`."""
    from peft import PeftModel

    from core.adapters.forms import saved_config

    config = saved_config(folder, model)
    if isinstance(model, PeftModel):
        model.load_adapter(folder, adapter_name=name, is_trainable=False, peft_config=config)
        return model
    return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False, config=config)


def save_order(model: Any, folder: str | Path) -> None:
    """Beside a saved model of several adapters, the order in which they are active; each is in a folder of its name."""
    active = model.active_adapters if hasattr(model, "active_adapters") else []
    names = list(active() if callable(active) else active)
    if len(names) > 1:
        write_json(Path(folder) / ORDER, {"active": names})


def load_order(model: Any, folder: str | Path, trainable: bool = False) -> Any:
    """The other adapters of a saved stack on a model that has the default one already."""
    if not (Path(folder) / ORDER).is_file():
        return model
    names = read_json(Path(folder) / ORDER)["active"]
    for name in names:
        if name != "default":
            attach_frozen(model, str(Path(folder) / name), name)
    stack(model, names, train="default")
    if not trainable:
        model.requires_grad_(False)
    return model
