"""Language modelling from scratch: plain text in, a base model out, measured in bits per byte."""

from __future__ import annotations

import importlib
from typing import Any

from core.config.registry import App

__all__ = ["APP", "LmEvaluator", "LmPipeline", "TextExample"]

APP = App(
    "lm",
    data="apps.lm.data",
    pipeline="apps.lm.pipeline:LmPipeline",
    evaluator="apps.lm.evaluator:LmEvaluator",
    methods=("apps.lm.methods.pretrain", "apps.lm.methods.mlm"),
)

_ROOMS = {"LmPipeline": "pipeline", "LmEvaluator": "evaluator", "TextExample": "data"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.lm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.lm.{_ROOMS[name]}"), name)
