"""Language modelling from scratch: plain text in, a base model out, measured in bits per byte."""

from __future__ import annotations

import importlib
from typing import Any

from core.config.registry import EDITS, App, Part

__all__ = ["APP", "LmEvaluator", "LmPipeline", "StackPipeline", "TextExample"]

STACKED = App(
    "lm",
    data="apps.lm.stacked.data",
    pipeline="apps.lm.stacked.pipeline:StackPipeline",
    evaluator="apps.lm.stacked.evaluator:StackEvaluator",
    model="apps.lm.stacked.model:build_model",
)
APP = App(
    "lm",
    data="apps.lm.data",
    pipeline="apps.lm.pipeline:LmPipeline",
    evaluator="apps.lm.evaluator:LmEvaluator",
    methods=("apps.lm.methods.pretrain", "apps.lm.methods.mlm", "apps.lm.methods.stack"),
    rooms=dict.fromkeys(("lm.stack", "lm.stack_tune", "lm.stack_task"), STACKED),
)
EDITS.register("mt_encoder")(Part("apps.lm.stacked.model:edit", "apps.lm.stacked.options:EncoderOptions"))

_ROOMS = {
    "LmPipeline": "pipeline",
    "LmEvaluator": "evaluator",
    "StackPipeline": "stacked.pipeline",
    "TextExample": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.lm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.lm.{_ROOMS[name]}"), name)
