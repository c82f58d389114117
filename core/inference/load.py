"""Open what training saved, ready to serve: full weights, or an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.config.schema import ModelConfig
from core.config.typed import Places, build
from core.errors import BackendUnavailable, CheckpointError, ConfigError
from core.inference.save import BASE_NOTE
from core.models.load import load_tokenizer, resolve_path
from core.quantization.load import load_base


def pick_device(wanted: str) -> str:
    """ "auto" is cuda where there is one.

    Raises:
        ConfigError: no device has such a name. BackendUnavailable: the device is not there.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"no device is called '{wanted}'", where="device", hint="auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable("no CUDA device on this machine", hint="use device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"no device {wanted}: this machine has {torch.cuda.device_count()}", hint="count from cuda:0"
        )
    return wanted


def load_for_serving(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    adapter: str | None = None,
    revision: str | None = None,
) -> tuple[Any, Any, str]:
    """Model, tokenizer and the folder (or hub id) that they came from.

    An adapter folder holds its base in base/, or names it in adapter_config.json. The base is held in the number format
    that the adapter was trained on, unless `quantization` names another.

    Raises:
        CheckpointError: no model there, or its base is gone. ConfigError: an unknown dtype.
    """
    folder = resolve_path(path)
    device = pick_device(device)
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    base = base_of(folder) if is_adapter else folder
    if quantization is None:
        quantization = trained_on(folder) if is_adapter else "none"
    wanted = {"path": base, "tokenizer": folder, "revision": revision, "dtype": dtype}
    config = build(ModelConfig, {**wanted, "quantization": quantization}, Places("from_pretrained"))
    tokenizer = load_tokenizer(config)
    model = load_base(config, tokenizer, device=device)
    for name in filter(None, [folder if is_adapter else None, adapter]):
        model = attach_adapter(model, name)
    if device.startswith("cuda"):
        from core.quantization.kernels.registry import prepare_model

        prepare_model(model)
    return model.eval(), tokenizer, folder


def attach_adapter(model: Any, folder: str, trainable: bool = False) -> Any:
    """A saved peft adapter on `model`."""
    from peft import PeftModel

    from core.adapters.forms import saved_config
    from core.adapters.stacking import load_order

    try:
        place = resolve_path(folder)
        config = saved_config(place, model)
        config.inference_mode = not trainable
        loaded = PeftModel.from_pretrained(model, place, is_trainable=trainable, config=config)
        return load_order(loaded, place, trainable)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the adapter cannot be loaded: {str(error).splitlines()[0][:200]}", where=folder
        ) from error


def trained_on(folder: str) -> str:
    """The number format of the base that an adapter was trained on."""
    note = Path(folder) / BASE_NOTE
    return read_json(note).get("quantization", "none") if note.is_file() else "none"


def base_of(folder: str) -> str:
    """The base that an adapter folder carries or names."""
    if (Path(folder) / "base" / "config.json").is_file():
        return str(Path(folder) / "base")
    base = read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise CheckpointError("the adapter does not name its base", where=f"{folder}/adapter_config.json")
    return base
