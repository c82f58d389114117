"""Tool use: bring functions, an OpenAPI file or a catalogue; leave with calls that are right, and scores that compare.

from apps.tool_use import FunctionCallPipeline, ToolSpec
call = FunctionCallPipeline.from_pretrained("runs/calls/42")
call({"query": "Weather in Rome?", "tools": [get_weather]}).meta["calls"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import EDITS, App, Part

if TYPE_CHECKING:
    from apps.tool_use.calls import Call
    from apps.tool_use.catalogue import Catalogue, ToolQuery, load_queries
    from apps.tool_use.data import ToolExample, load_data
    from apps.tool_use.evaluator import ToolUseEvaluator
    from apps.tool_use.pipeline import FunctionCallPipeline, ToolUsePipeline
    from apps.tool_use.retriever import ToolRetriever
    from apps.tool_use.retriever_score import RetrievalEvaluator
    from apps.tool_use.spec import ToolSpec
    from apps.tool_use.trace import Trace

__all__ = [
    "APP", "Call", "Catalogue", "FunctionCallPipeline", "RetrievalEvaluator", "ToolExample", "ToolQuery",
    "ToolRetriever", "ToolSpec", "ToolUseEvaluator", "ToolUsePipeline", "Trace", "load_data", "load_queries",
]  # fmt: skip

RETRIEVAL = App(
    "tool_use",
    data="apps.tool_use.catalogue",
    pipeline="apps.tool_use.retriever:ToolRetriever",
    evaluator="apps.tool_use.retriever_score:RetrievalEvaluator",
    model="apps.tool_use.retriever_model:build_model",
)
TRAJECTORIES = App(
    "tool_use",
    data="apps.tool_use.trajectories",
    pipeline="apps.tool_use.methods.toolllm:StepPipeline",
    evaluator="apps.tool_use.evaluator:ToolUseEvaluator",
    smoke_tokens=160,
)
BRIDGE = App(
    "tool_use",
    data="apps.tool_use.interleaved",
    pipeline="apps.tool_use.methods.toolbridge:BridgePipeline",
    evaluator="apps.tool_use.methods.toolbridge:NumericEvaluator",
    smoke_tokens=24,
)
REWRITING = App(
    "tool_use",
    data="apps.tool_use.catalogue",
    pipeline="apps.tool_use.methods.qta:RewritePipeline",
    evaluator="apps.tool_use.retriever_score:RetrievalEvaluator",
    smoke_tokens=16,
)
MADE = App(
    "tool_use",
    data="apps.tool_use.problems",
    pipeline="apps.tool_use.methods.latm_user:ToolUserPipeline",
    evaluator="apps.tool_use.methods.latm_user:CodeEvaluator",
    smoke_tokens=24,
    smoke_length=512,
)
METHODS = ("calls", "latm_user", "qta", "retriever", "toolbridge", "toolllm")
APP = App(
    "tool_use",
    data="apps.tool_use.data",
    pipeline="apps.tool_use.pipeline:FunctionCallPipeline",
    evaluator="apps.tool_use.evaluator:ToolUseEvaluator",
    methods=tuple(f"apps.tool_use.methods.{name}" for name in METHODS),
    smoke_tokens=96,
    rooms={
        "tool_use.retriever": RETRIEVAL,
        "tool_use.toolllm": TRAJECTORIES,
        "tool_use.toolbridge": BRIDGE,
        "tool_use.qta": REWRITING,
        "tool_use.latm": MADE,
    },
)
EDITS.register("bi_encoder")(Part("apps.tool_use.retriever_model:edit", "apps.tool_use.options:BiEncoderOptions"))
EDITS.register("position_interpolation")(
    Part("apps.tool_use.interpolation:interpolate", "apps.tool_use.options:InterpolationOptions")
)

_ROOMS = {
    "Call": "calls",
    "Catalogue": "catalogue",
    "FunctionCallPipeline": "pipeline",
    "RetrievalEvaluator": "retriever_score",
    "ToolExample": "data",
    "ToolQuery": "catalogue",
    "ToolRetriever": "retriever",
    "ToolSpec": "spec",
    "ToolUseEvaluator": "evaluator",
    "ToolUsePipeline": "pipeline",
    "Trace": "trace",
    "load_data": "data",
    "load_queries": "catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.tool_use' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.tool_use.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
