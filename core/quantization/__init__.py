"""Low-bit weights: fifteen published methods as rows of one table (`presets`), one layer, one format on disk.

from core.quantization import quantize_model
quantize_model(model, "awq:int4:g128", calib=token_batches)
model.save_pretrained(folder)                  # AutoModelForCausalLM.from_pretrained(folder) after this import
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "QuantSpec": "spec",
    "parse": "spec",
    "PRESETS": "presets",
    "quantize_model": "quantize",
    "QuantizedLinear": "linear",
    "GraftQuantConfig": "hf",
    "prepare_for_training": "peft",
    "graft_cache": "kv",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
