"""A Trainer for models of which some maps are quantized and frozen while others are dense and learn."""

from __future__ import annotations

from typing import Any


class PartlyQuantized:
    """transformers' Trainer refuses a quantized model without adapters; here the parts that learn are not quantized."""

    def __init__(self, model: Any = None, *args: Any, **kwargs: Any) -> None:
        quantized = getattr(model, "is_quantized", False)
        if quantized:
            model.is_quantized = False
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]
        if quantized:
            model.is_quantized = True
