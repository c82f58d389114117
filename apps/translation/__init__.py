"""Machine translation with language models: readers, prompts, a pipeline, the field's metrics and training methods.

What a user imports is here and is loaded on first use, so that importing the app costs nothing:

    from apps.translation import TranslationPipeline
    TranslationPipeline.from_pretrained("embedded")("Guten Tag.", src="de", tgt="en").text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import App

if TYPE_CHECKING:
    from apps.translation.data import TranslationExample, load_data
    from apps.translation.evaluator import TranslationEvaluator
    from apps.translation.pipeline import TranslationPipeline

__all__ = ["APP", "TranslationEvaluator", "TranslationExample", "TranslationPipeline", "load_data"]

APP = App(
    "translation",
    data="apps.translation.data",
    pipeline="apps.translation.pipeline:TranslationPipeline",
    evaluator="apps.translation.evaluator:TranslationEvaluator",
    methods=("apps.translation.methods.alma", "apps.translation.methods.cpo"),
)

_ROOMS = {
    "TranslationPipeline": "pipeline",
    "TranslationEvaluator": "evaluator",
    "TranslationExample": "data",
    "load_data": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.translation' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.translation.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
