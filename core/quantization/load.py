"""A base whose weights are held in the number format that the recipe names.

The format is looked up in `QUANTIZERS`. One that can quantize while transformers reads the folder does so, and the
full weights never lie in memory together; a model that is built or edited here first is quantized afterwards. Serving
calls the same function as training, so an adapter is served on the weights that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.config.registry import QUANTIZERS, BuildContext
from core.config.schema import ModelConfig
from core.errors import ConfigError, UnsupportedError
from core.models.linear import is_linear_like
from core.models.load import DTYPES, load_model, resolve_path
from core.quantization.bitsandbytes import keep_codes

CALIBRATION_LENGTH, CALIBRATION_ROWS = 512, 128
FOREIGN = ("awq", "gptq")


def load_base(
    config: ModelConfig,
    tokenizer: Any,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    edit: Callable[[Any], Any] | None = None,
    texts: Sequence[str] = (),
) -> Any:
    """The base of `config` on `device`, edited by `edit`, then quantized as `config.quantization` says.

    Args:
        texts: for presets that calibrate. A folder of codes that graft, AWQ or GPTQ wrote is opened as it is.

    Raises:
        ConfigError: an unknown format. BackendUnavailable: its library is not installed. Otherwise as `load_model`.
    """
    spec, method = config.quantization, _method_of(config.path)
    if method in ("graft", *FOREIGN):
        import core.quantization.hf  # noqa: F401

        if spec != "none":
            raise UnsupportedError(
                f"the base holds codes already, and '{spec}' would quantize them again",
                where="model.quantization", hint="set model.quantization: none, or start from the dense base",
            )  # fmt: skip
    if spec == "none" or method in FOREIGN:
        model = _opened(config, method, device, dtype) or load_model(
            config, tokenizer, device=device, dtype=dtype, seed=seed
        )
        return model if edit is None else edit(model)
    quantizer = QUANTIZERS.get(spec.partition(":")[0])
    if quantizer.loading and config.path and edit is None:
        extra = {**quantizer.loading_options(spec, compute_dtype(device)), "device_map": {"": device}}
        model = load_model(config, tokenizer, device=device, dtype=dtype, seed=seed, extra=extra)
    else:
        model = load_model(config, tokenizer, device=device, dtype=dtype, seed=seed)
        model = model if edit is None else edit(model)
        learning = learning_parts(model)
        context = BuildContext(seed, tokenizer, texts, learning)
        model = quantizer.applied(model, spec, device, context)
        if learning:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.rpartition(".")[0] in learning)
    model.graft_quantization = spec
    return keep_codes(model)


def learning_parts(model: Any) -> tuple[str, ...]:
    """Names of the modules that train while the rest of an edited model is frozen; empty where all or nothing does."""
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    if all(wanted.values()) or not any(wanted.values()):
        return ()
    found = {name.rpartition(".")[0] for name, trains in wanted.items() if trains}
    # maps inside a form are found through the form
    forms = {outer for name in found if is_linear_like(model.get_submodule(outer := name.rpartition(".")[0]))}
    return tuple(sorted(found | forms))


def apply_preset(model: Any, spec: str, device: str, context: BuildContext | None = None) -> Any:
    """A model in memory with its weights in one of our presets; calibrated on the context's texts where it asks for it.

    A preset that is made by training brings the model into the form that trains.

    Raises:
        ConfigError: texts are needed and there are none.
    """
    from core.quantization.quantize import quantize_model
    from core.quantization.spec import parse
    from core.quantization.trained import make_trainable
    from core.statistics.calibration import token_batches

    wanted = parse(spec.removeprefix("graft:"))
    model = model.to(device)
    if wanted.trained:
        return make_trainable(model, wanted)
    calib = None
    if wanted.needs_calibration:
        if context is None or not context.texts or context.tokenizer is None:
            raise ConfigError(
                f"preset '{wanted.preset}' needs calibration text", where="model.quantization",
                hint="graft compress makes a folder of codes once; give that folder as model.path",
            )  # fmt: skip
        calib = token_batches(context.tokenizer, context.texts, CALIBRATION_LENGTH, CALIBRATION_ROWS)
    quantize_model(model, wanted, calib, skip=() if context is None else context.dense)
    return model


def carries_base(spec: str) -> bool:
    """Whether a run in this format keeps its own base: codes that depend on data cannot be made again from the path."""
    parsed = None if spec == "none" else QUANTIZERS.get(spec.partition(":")[0]).parsed(spec)
    return parsed is not None and parsed.needs_calibration


def holds_codes(path: str) -> bool:
    """Whether the folder or hub id `path` holds codes that are opened into our layers."""
    return _method_of(path) in ("graft", *FOREIGN)


def _method_of(path: str | None) -> str | None:
    """Whose codes a folder holds, as its config says; None for dense weights."""
    place = Path(resolve_path(path)) / "config.json" if path else Path("config.json")
    if not path or not place.is_file():
        return None
    return (read_json(place).get("quantization_config") or {}).get("quant_method")


def _opened(config: ModelConfig, method: str | None, device: str, dtype: str | None) -> Any:
    """The model of a folder that AWQ or GPTQ wrote, in our layers; None for any other folder."""
    if method not in FOREIGN:
        return None
    import torch

    from core.quantization.exchange import load_foreign

    name = {"auto": None}.get(dtype or config.dtype, dtype or config.dtype)
    kind = compute_dtype(device) if name is None else getattr(torch, DTYPES[name])
    assert config.path is not None
    model = load_foreign(resolve_path(config.path), kind).to(device)
    model.name_or_path = model.config._name_or_path = config.path
    return model


def compute_dtype(device: str) -> Any:
    """Matrix products of quantized weights: bf16 on a GPU, fp32 on a CPU."""
    import torch

    return torch.float32 if device == "cpu" else getattr(torch, DTYPES["bf16"])


def requantize(model: Any, spec: str, device: str = "cpu") -> Any:
    """A model in memory, held in the format `spec` from now on. Returns the new model; the old one may be gone."""
    quantizer = QUANTIZERS.get(spec.partition(":")[0])
    return quantizer.applied(model, spec, device, None)
