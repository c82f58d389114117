"""Question answering over retrieved passages: few-shot against fine-tuned, on biomedical and own questions."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import App

if TYPE_CHECKING:
    from apps.qa.data import QaExample, load_data
    from apps.qa.evaluator import QaEvaluator
    from apps.qa.pipeline import QaPipeline

__all__ = ["APP", "QaEvaluator", "QaExample", "QaPipeline", "load_data"]

APP = App(
    "qa",
    data="apps.qa.data",
    pipeline="apps.qa.pipeline:QaPipeline",
    evaluator="apps.qa.evaluator:QaEvaluator",
    methods=("apps.qa.methods.sft", "apps.qa.methods.grid"),
)

_ROOMS = {"QaPipeline": "pipeline", "QaEvaluator": "evaluator", "QaExample": "data", "load_data": "data"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.qa' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.qa.{_ROOMS[name]}"), name)
