"""Make a tuner of ours known to peft under its own name.

peft keeps its methods in an enum that is closed and in four tables. This is the only place that touches the enum's
internals; after it `get_peft_model`, `save_pretrained` and `PeftModel.from_pretrained` treat the method as their own.
"""

from __future__ import annotations

import importlib
from typing import Any

METHODS = ("core.adapters.bottleneck", "core.adapters.seq_bottleneck", "core.sparse.spiel")


def know_methods() -> None:
    """Register every method of ours, before a saved adapter of unknown kind is opened."""
    for module in METHODS:
        importlib.import_module(module)


def register_method(name: str, config_cls: type, model_cls: type, prefix: str) -> None:
    """Register once; a second call with the same classes changes nothing.

    Args:
        name: lower case; the `peft_type` of saved adapters is its upper case.
        prefix: what every parameter name of the method contains, ending in an underscore.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import register_peft_method

    member = peft_type(name)
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(member) is not config_cls:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=prefix)


def peft_type(name: str) -> Any:
    """The member of peft's enum for a method of ours, made on first use."""
    from peft.utils import PeftType

    value = name.upper()
    if value not in PeftType._value2member_map_:
        member = str.__new__(PeftType, value)
        member._name_ = member._value_ = value
        setattr(PeftType, value, member)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
        PeftType._member_names_.append(value)
    return PeftType(value)
