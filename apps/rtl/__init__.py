"""Hardware from specifications: benchmarks, a verdict that cannot be talked into, training on it, and tools around it.

    from apps.rtl import RtlHarness, load_data
    problem = load_data("verilog-eval", "verilogeval")[0]
    RtlHarness().verify(problem, "module TopModule (output zero); assign zero = 0; endmodule").meaning

What a user imports is here and is loaded on first use, so that importing the app costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import App

if TYPE_CHECKING:
    from apps.rtl.data import RtlExample, load_data
    from apps.rtl.evaluator import RtlEvaluator
    from apps.rtl.harness import RtlHarness
    from apps.rtl.pipeline import RtlPipeline

__all__ = ["APP", "RtlEvaluator", "RtlExample", "RtlHarness", "RtlPipeline", "load_data"]

APP = App(
    "rtl",
    data="apps.rtl.data",
    pipeline="apps.rtl.pipeline:RtlPipeline",
    evaluator="apps.rtl.evaluator:RtlEvaluator",
    methods=("apps.rtl.methods.sft", "apps.rtl.methods.itertl", "apps.rtl.methods.filter"),
)

_ROOMS = {
    "RtlPipeline": "pipeline",
    "RtlEvaluator": "evaluator",
    "RtlHarness": "harness",
    "RtlExample": "data",
    "load_data": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.rtl' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.rtl.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
