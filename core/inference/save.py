"""Write a model as a folder: full weights, or an adapter, with its base where that has no other place on disk."""

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


def save_model(model: Any, folder: str | Path) -> None:
    """Weights and config into `folder`. An adapter whose base has no name of its own carries it in base/."""
    adapter = getattr(model, "peft_config", {}).get("default")
    if adapter is None:
        model.save_pretrained(folder)
        return
    adapter.base_model_name_or_path = adapter.base_model_name_or_path or "base"
    if adapter.base_model_name_or_path == "base":
        save_base(model, Path(folder) / "base")
    # Asked to decide for itself, peft would look for the base's name on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
