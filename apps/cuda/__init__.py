"""CUDA kernels from PyTorch operators: written, compiled, proved on many inputs, timed, and trained on all three.

    from apps.cuda import CudaHarness, load_data
    problem = load_data("KernelBench", "kernelbench", split="1")[0]
    CudaHarness().verify(problem, answer).meaning

What a user imports is here and is loaded on first use, so that importing the app costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import App

if TYPE_CHECKING:
    from apps.cuda.data import CudaExample, load_data
    from apps.cuda.evaluator import CudaEvaluator
    from apps.cuda.harness import CudaHarness
    from apps.cuda.pipeline import CudaPipeline

__all__ = ["APP", "CudaEvaluator", "CudaExample", "CudaHarness", "CudaPipeline", "load_data"]

APP = App(
    "cuda",
    data="apps.cuda.data",
    pipeline="apps.cuda.pipeline:CudaPipeline",
    evaluator="apps.cuda.evaluator:CudaEvaluator",
    methods=("apps.cuda.methods.sft", "apps.cuda.methods.fsr"),
    smoke_length=224,
)

_ROOMS = {
    "CudaPipeline": "pipeline",
    "CudaEvaluator": "evaluator",
    "CudaHarness": "harness",
    "CudaExample": "data",
    "load_data": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.cuda' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.cuda.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
