"""Which kernel multiplies: chosen from device, number of rows and spec, and from nothing else.

A kernel is a module with `refuses(layer)` (the reason why it cannot run, or None), `arrange(layer)` (its own layout
of the codes), `restore(layer)` (the planes again) and `multiply(layer, x)`; `most_rows` says where it stops paying,
`differentiable` that gradients pass. The reference does what a kernel leaves. Asking for one that cannot run raises;
"auto" takes the first that can. Values beside the matrix are added by their own kernel.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import nn

from core.errors import BackendUnavailable, ConfigError, nearest
from core.quantization.kernels import reference

KERNELS = {
    "lut": "core.quantization.kernels.cpu.lut",
    "w4": "core.quantization.kernels.cuda.w4_a16",
    "w8": "core.quantization.kernels.triton.w8_a16",
    "w8a8": "core.quantization.kernels.triton.w8_a8",
}

_LOADED: dict[str, ModuleType] = {}


def prepare(layer: Any, kernel: str = "auto") -> Any:
    """Arrange the codes of `layer` for a kernel, in place."""
    if layer._layout:
        planes = restore(layer)
        layer._layout, layer.kernel = (), "reference"
        layer.planes = nn.Parameter(planes, requires_grad=False)
    if kernel == "reference":
        return layer
    names = list(KERNELS) if kernel == "auto" else [kernel]
    for name in names:
        module = _module(name)
        reason = module.refuses(layer)
        if reason is None:
            layer._layout = module.arrange(layer)
            layer.kernel = name
            layer.planes = nn.Parameter(layer.planes.new_empty(0), requires_grad=False)
            return layer
        if kernel != "auto":
            raise BackendUnavailable(f"kernel '{kernel}' cannot run: {reason}", hint="kernel 'reference' always can")
    return layer


def restore(layer: Any) -> torch.Tensor:
    """The planes of a layer whose codes a kernel has arranged."""
    return _module(layer.kernel).restore(layer)


def run(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (…, K) times the layer's matrix, without bias: (…, N). Under autocast in its dtype, as a dense product is."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if layer.kernel == "reference":
        return reference.quantized_linear(x, layer.state(), layer.form.text)
    # a dictionary, because a compiler of graphs does not follow an import by name
    module, beside = _LOADED.get(layer.kernel) or _module(layer.kernel), bool(layer.extra.get("nnz"))
    learning = x.requires_grad and torch.is_grad_enabled()
    most = getattr(module, "most_rows", None)
    if (most is not None and x.numel() // max(1, x.shape[-1]) > most) or (
        learning and (beside or not getattr(module, "differentiable", False))
    ):
        return reference.quantized_linear(x, layer.state(), layer.form.text)
    y = module.multiply(layer, x)
    if beside:
        from core.quantization.kernels.triton import csr

        csr.add(y, x, layer.sparse_crow, layer.sparse_col, layer.sparse_val)
    return y


def prepare_model(model: Any) -> Any:
    """Every quantized layer of a model that lies on a GPU with the fastest kernel that it can have, for serving."""
    for module in model.modules():
        if hasattr(module, "canonical_planes") and module.planes.is_cuda:
            prepare(module)
    return model


def _module(name: str) -> ModuleType:
    if name not in KERNELS:
        raise ConfigError(f"unknown kernel '{name}'", hint=f"{nearest(name, KERNELS)} known: {', '.join(KERNELS)}")
    return _LOADED.setdefault(name, importlib.import_module(KERNELS[name]))
