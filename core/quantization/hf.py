"""Quantized models as transformers knows them: `from_pretrained`, `save_pretrained`, exact reload.

Importing this module registers the method "graft". A saved model's config lists every quantized layer with what its
data decided, so that the structure is rebuilt on the meta device before the tensors are read into place; every stored
tensor has its final name. A dense folder is quantized after loading when the preset needs no data.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from core.errors import CheckpointError, ConfigError
from core.models.linear import features
from core.quantization.linear import QuantizedLinear, check_version
from core.quantization.spec import QuantSpec, parse
from core.quantization.trained import latent_class

METHOD = "graft"
_WRAPPED = (".base_layer.", ".original_module.")


class GraftQuantConfig(QuantizationConfigMixin):
    """What `from_pretrained(quantization_config=…)` takes and config.json keeps.

    Args:
        spec: a preset's text ("bitmod:3:g128"), a `QuantSpec` or its dictionary.
        layers: name of each quantized layer → what its data decided, or another spec under "spec". Empty quantizes
            every linear map but the head and what is tied to the embedding.
        skip: parts of names that stay dense.
    """

    def __init__(
        self,
        spec: str | QuantSpec | dict = "rtn",
        layers: dict[str, dict] | None = None,
        skip: list[str] | None = None,
        version: int = 1,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ConfigError(f"unknown quantization key '{sorted(unknown)[0]}'", where="quantization_config")
        check_version(version)
        self.quant_method = METHOD
        self.version = version
        self.spec = QuantSpec.from_dict(spec) if isinstance(spec, dict) else parse(spec)
        self.layers, self.skip = dict(layers or {}), list(skip or [])

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "version": self.version,
            "spec": self.spec.to_dict(),
            "layers": self.layers,
            "skip": self.skip,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    def spec_of(self, name: str) -> QuantSpec:
        """The spec of one layer."""
        own = self.layers.get(name, {}).get("spec")
        return self.spec if own is None else QuantSpec.from_dict(own)


class GraftQuantizer(HfQuantizer):
    """Rebuilds the quantized structure before weights are read, or quantizes what was read."""

    requires_calibration = False
    quantization_config: GraftQuantConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        spec = self.quantization_config.spec
        if not self.pre_quantized and (spec.needs_calibration or spec.trained):
            raise ConfigError(
                f"preset '{spec.preset}' needs {'training' if spec.trained else 'calibration data'}",
                where="quantization_config",
                hint="load the dense model, then core.quantization.quantize_model(model, spec, calib=batches)"
                if not spec.trained
                else "core.quantization.trained.make_trainable(model, spec), then train",
            )

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            config = self.quantization_config
            for name, extra in config.layers.items():
                put_empty(model, name, config.spec_of(name), extra)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self.pre_quantized:
            from core.quantization.quantize import quantize_model

            quantize_model(model, self.quantization_config.spec, skip=self.quantization_config.skip)
        else:
            refuse_missing(model)
        model.graft_quantization = str(self.quantization_config.spec)
        return model

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the layers themselves train."""
        return any(extra.get("latent") for extra in self.quantization_config.layers.values())

    @property
    def is_compileable(self) -> bool:
        return True

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The model's own tensors by their own names, also when adapters are wrapped around its layers."""
        state = model.state_dict()
        wrapped = {key.partition(inner)[0] for inner in _WRAPPED for key in state if inner in key}
        own: dict[str, torch.Tensor] = {}
        for key, value in state.items():
            owner = next((prefix for prefix in _parents(key) if prefix in wrapped), None)
            inner = next((inner for inner in _WRAPPED if inner in key), None)
            if owner is None:
                own[key] = value
            elif inner is not None:
                own[key.replace(inner, ".")] = value
        return own, {}

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        return to_dense(model, dtype)


if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(GraftQuantConfig)
    register_quantizer(METHOD)(GraftQuantizer)


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def refuse_missing(model: Any) -> None:
    """Raise `CheckpointError` naming the first tensor of codes that the folder did not have.

    transformers makes up what is missing and says so in a table; it marks what it has read.
    """
    held = {
        f"{name}.{key}": tensor
        for name, part in model.named_modules()
        if isinstance(part, QuantizedLinear)
        for key, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        if key != "bias"
    }
    missing = [key for key, tensor in held.items() if not getattr(tensor, "_is_hf_initialized", False)]
    if missing and len(missing) < len(held):
        raise CheckpointError(
            f"the folder lacks '{missing[0]}'" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            hint="codes cannot be made up: copy all its safetensors, or quantize the model again",
        )


def put_empty(model: Any, name: str, spec: QuantSpec, extra: dict[str, Any]) -> None:
    """An empty quantized layer in place of the linear map called `name`, on that map's device."""
    try:
        old = model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(
            f"the saved model quantizes '{name}', which this model does not have", where="quantization_config.layers"
        ) from None
    inputs, outputs = features(old)
    extra = {key: value for key, value in extra.items() if key != "spec"}
    bias = getattr(old, "bias", None) is not None
    where = {"device": old.weight.device, "dtype": old.weight.dtype}
    if extra.get("latent"):
        made: Any = latent_class(spec)(inputs, outputs, bias, quant=spec, **where)
    else:
        made = QuantizedLinear(inputs, outputs, spec, bias, extra=extra, **where)
    model.set_submodule(name, made)


def mark(model: Any, spec: QuantSpec, skip: list[str] | None = None) -> None:
    """Tell transformers that `model` holds quantized layers, so that it saves what it needs to load again."""
    layers: dict[str, dict] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) or getattr(module, "extra", {}).get("latent"):
            layers[name] = dict(module.extra)
            if module.quant != spec.fitted(module.in_features):
                layers[name]["spec"] = module.quant.to_dict()
    config = GraftQuantConfig(spec, layers, skip)
    model.config.quantization_config = config
    model.hf_quantizer = GraftQuantizer(config, pre_quantized=True)
    model.is_quantized, model.quantization_method = True, METHOD
    model.config._is_quantized = True
    model.graft_quantization = str(spec)


def to_dense(model: Any, dtype: torch.dtype | None = None) -> Any:
    """`model` with a plain `nn.Linear` in place of every quantized layer, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            dense = torch.nn.Linear(
                module.in_features, module.out_features, module.bias is not None, device=module.planes.device,
                dtype=dtype or model.dtype,
            )  # fmt: skip
            with torch.no_grad():
                dense.weight.copy_(module.dense_weight())
                if module.bias is not None:
                    dense.bias.copy_(module.bias)
            model.set_submodule(name, dense)
    return model
