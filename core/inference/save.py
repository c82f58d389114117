"""Write a model as a folder: full weights, or an adapter, with its base where that has no other place on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.config.files import write_json

BASE_NOTE = "base.json"
_ADAPTER_PARTS = (".modules_to_save.", ".token_adapter.")


def base_weights(model: Any) -> dict[str, Any]:
    """The base's own tensors by their names without the adapter: peft wraps layers and keeps the originals inside.

    Quantized weights come back dense, as the layers multiply with them.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING as PREFIXES

    from core.quantization.dense import dense_state, is_quantized_linear

    own = [PREFIXES[config.peft_type] for config in model.peft_config.values() if config.peft_type in PREFIXES]
    base = model.get_base_model()
    state = dense_state(base) if any(map(is_quantized_linear, base.modules())) else base.state_dict()
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in state.items()
        if not any(part in name for part in (*own, *_ADAPTER_PARTS))
    }


def save_base(model: Any, folder: str | Path) -> None:
    """Config and weights of the base of a peft model; in a format of bitsandbytes, the dense weights it stands for."""
    base = model.get_base_model()
    if getattr(base, "quantization_method", None) == "graft":
        base.save_pretrained(folder)
        return
    if getattr(base, "quantization_method", None) is None:
        base.save_pretrained(folder, state_dict=base_weights(model))
    else:
        dense_base(model).save_pretrained(folder)


def dense_base(model: Any) -> Any:
    """The quantized base of a peft model as a plain model of its own, in the base's dtype."""
    import copy

    base = model.get_base_model()
    config = copy.copy(base.config)
    del config.quantization_config
    dense = type(base)(config).to(base.dtype)
    dense.load_state_dict(base_weights(model), strict=False)
    dense.tie_weights()
    dense.name_or_path = base.name_or_path
    return dense


def save_model(model: Any, folder: str | Path) -> None:
    """Weights and config into `folder`. An adapter whose base has no name of its own carries it in base/."""
    adapter = getattr(model, "peft_config", {}).get("default")
    if adapter is None:
        model.save_pretrained(folder)
        return
    from core.adapters.stacking import save_order

    adapter.base_model_name_or_path = adapter.base_model_name_or_path or "base"
    if adapter.base_model_name_or_path == "base":
        save_base(model, Path(folder) / "base")
    quantization = getattr(model.get_base_model(), "graft_quantization", "none")
    as_codes = getattr(model.get_base_model(), "quantization_method", "") == "graft"
    if quantization != "none" and not (as_codes and adapter.base_model_name_or_path == "base"):
        write_json(Path(folder) / BASE_NOTE, {"quantization": quantization})
    # Asked to decide for itself, peft would look for the base's name on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    save_order(model, folder)
