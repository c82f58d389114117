"""Tool use: bring functions, an OpenAPI file or a catalogue; leave with calls that are right, and scores that compare.

from apps.tool_use import FunctionCallPipeline, ToolSpec
call = FunctionCallPipeline.from_pretrained("runs/calls/42")
call({"query": "Weather in Rome?", "tools": [get_weather]}).meta["calls"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import App

if TYPE_CHECKING:
    from apps.tool_use.calls import Call
    from apps.tool_use.data import ToolExample, load_data
    from apps.tool_use.evaluator import ToolUseEvaluator
    from apps.tool_use.pipeline import FunctionCallPipeline
    from apps.tool_use.spec import ToolSpec

__all__ = ["APP", "Call", "FunctionCallPipeline", "ToolExample", "ToolSpec", "ToolUseEvaluator", "load_data"]

APP = App(
    "tool_use",
    data="apps.tool_use.data",
    pipeline="apps.tool_use.pipeline:FunctionCallPipeline",
    evaluator="apps.tool_use.evaluator:ToolUseEvaluator",
    methods=("apps.tool_use.methods.calls",),
    smoke_tokens=96,
)

_ROOMS = {
    "Call": "calls",
    "FunctionCallPipeline": "pipeline",
    "ToolExample": "data",
    "ToolSpec": "spec",
    "ToolUseEvaluator": "evaluator",
    "load_data": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.tool_use' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.tool_use.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
