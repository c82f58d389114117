"""Write the base under an adapter as a plain model folder, the adapter itself left on the model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ADAPTER_PARTS = ("lora_", ".modules_to_save.", ".token_adapter.")


def base_weights(model: Any) -> dict[str, Any]:
    """The base's own tensors by their names without the adapter: peft wraps layers and keeps the originals inside."""
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in model.get_base_model().state_dict().items()
        if not any(part in name for part in _ADAPTER_PARTS)
    }


def save_base(model: Any, folder: str | Path) -> None:
    """Config and weights of the base of a peft model."""
    model.get_base_model().save_pretrained(folder, state_dict=base_weights(model))
