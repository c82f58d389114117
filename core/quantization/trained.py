"""Presets that are made by training: bring a model into the form that trains, and pack it afterwards.

trilm and bitlinear train ternary weights from scratch, edkm fine-tunes a model through soft k-means. The form that
trains is saved and loaded through transformers as the packed one is; a layer says in its extra that it is latent.
"""

from __future__ import annotations

import importlib
from typing import Any

from core.errors import ConfigError
from core.quantization.spec import QuantSpec, parse

_MODULES = {"ternary": "core.quantization.solvers.ste", "learned": "core.quantization.solvers.dkm"}


def make_trainable(model: Any, spec: str | QuantSpec, skip: Any = ()) -> Any:
    """`model` with layers that train in the preset's form, in place. Raises `ConfigError` for other presets."""
    from core.quantization.hf import mark

    spec = parse(spec)
    if not spec.trained:
        raise ConfigError(f"preset '{spec.preset}' is not trained", hint="quantize_model applies it")
    model = importlib.import_module(_MODULES[spec.grid]).make_trainable(model, spec, skip)
    mark(model, spec, list(skip))
    return model


def pack(model: Any) -> Any:
    """`model` with packed layers in place of those that train, in place; a model without such layers as it is."""
    from core.quantization.hf import mark

    latent = [part for part in model.modules() if getattr(part, "extra", {}).get("latent")]
    if not latent:
        return model
    spec = latent[0].quant
    model = importlib.import_module(_MODULES[spec.grid]).pack(model)
    mark(model, spec)
    return model


def latent_class(spec: QuantSpec) -> Any:
    """The class of a layer that trains in this form."""
    module = importlib.import_module(_MODULES[spec.grid])
    return module.TernaryLinear if spec.grid == "ternary" else module.DkmLinear
