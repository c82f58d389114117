"""A random little model with a byte vocabulary: everything around a model runs in a second, and says nothing true."""

from __future__ import annotations

from core.config.schema import ModelConfig
from core.inference.engines.hf import HfEngine


class TinyEngine(HfEngine):
    """An `HfEngine` over random weights; equal seeds give equal models."""

    def __init__(self, seed: int = 0) -> None:
        from core.models.load import load_model
        from core.models.tokenizer import train_bpe

        tokenizer = train_bpe(["tiny"], 260)
        super().__init__(load_model(ModelConfig(preset="tiny"), tokenizer, seed=seed).eval(), tokenizer)
