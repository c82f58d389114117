"""The dense weights that a quantized model stands for, whoever holds its codes: our layers or bitsandbytes'."""

from __future__ import annotations

from typing import Any

from core.quantization import bitsandbytes


def is_quantized_linear(module: Any) -> bool:
    """Whether the module holds codes in place of a weight."""
    return "planes" in module._parameters or bitsandbytes.is_quantized_linear(module)


def dense_state(model: Any) -> dict[str, Any]:
    """The state of `model` with dense weights in the model's dtype in place of codes and what belongs to them."""
    state = (
        bitsandbytes.dense_state(model)
        if any(map(bitsandbytes.is_quantized_linear, model.modules()))
        else dict(model.state_dict())
    )
    dtype = model.dtype if model.dtype.is_floating_point else None
    for name, module in model.named_modules():
        if "planes" in module._parameters:
            for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
                del state[key]
            state[f"{name}.weight"] = module.dense_weight(dtype)
    return state
