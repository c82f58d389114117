"""General chat: a user's own conversations in any common layout, tuned on, preferred between, rewarded, talked to.

from apps.chat import ChatPipeline
ChatPipeline.from_pretrained("runs/sft/42")("What is a crepe?").text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import App

if TYPE_CHECKING:
    from apps.chat.data import ChatExample, load_data
    from apps.chat.evaluator import ChatEvaluator
    from apps.chat.pipeline import ChatPipeline

__all__ = ["APP", "ChatEvaluator", "ChatExample", "ChatPipeline", "load_data"]

APP = App(
    "chat",
    data="apps.chat.data",
    pipeline="apps.chat.pipeline:ChatPipeline",
    evaluator="apps.chat.evaluator:ChatEvaluator",
    methods=("apps.chat.methods.sft", "apps.chat.methods.dpo", "apps.chat.methods.grpo"),
)

_ROOMS = {"ChatPipeline": "pipeline", "ChatEvaluator": "evaluator", "ChatExample": "data", "load_data": "data"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.chat' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.chat.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
