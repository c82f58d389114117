"""A base whose weights are held in the number format that the recipe names.

The format is looked up in `QUANTIZERS`. One that can quantize while transformers reads the folder does so, and the
full weights never lie in memory together; a model that is built or edited here first is quantized afterwards. Serving
calls the same function as training, so an adapter is served on the weights that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.config.registry import QUANTIZERS
from core.config.schema import ModelConfig
from core.models.load import DTYPES, load_model


def load_base(
    config: ModelConfig,
    tokenizer: Any,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    edit: Callable[[Any], Any] | None = None,
) -> Any:
    """The base of `config` on `device`, edited by `edit`, then quantized as `config.quantization` says.

    Raises:
        ConfigError: an unknown format. BackendUnavailable: its library is not installed. Otherwise as `load_model`.
    """
    spec = config.quantization
    if spec == "none":
        model = load_model(config, tokenizer, device=device, dtype=dtype, seed=seed)
        return model if edit is None else edit(model)
    quantizer = QUANTIZERS.get(spec.partition(":")[0])
    if quantizer.loading and config.path and edit is None:
        extra = {**quantizer.loading_options(spec, compute_dtype(device)), "device_map": {"": device}}
        model = load_model(config, tokenizer, device=device, dtype=dtype, seed=seed, extra=extra)
    else:
        model = load_model(config, tokenizer, device=device, dtype=dtype, seed=seed)
        model = quantizer.applied(model if edit is None else edit(model), spec, device)
    model.graft_quantization = spec
    return model


def compute_dtype(device: str) -> Any:
    """Matrix products of quantized weights: bf16 on a GPU, fp32 on a CPU."""
    import torch

    return torch.float32 if device == "cpu" else getattr(torch, DTYPES["bf16"])


def requantize(model: Any, spec: str, device: str = "cpu") -> Any:
    """A model in memory, held in the format `spec` from now on. Returns the new model; the old one may be gone."""
    quantizer = QUANTIZERS.get(spec.partition(":")[0])
    return quantizer.applied(model, spec, device)
