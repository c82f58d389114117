"""A tiny model, pairs of answers, and the trainers as a stage makes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from core.config.schema import ModelConfig, TrainConfig
from core.data.segments import Segment
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.training.preference.pairs import Pair, encode_pairs

WORDS = ["red", "blue", "green", "white", "black", "brown"]


def pair(color: str, other: str) -> Pair:
    prompt = Segment(f"Name the color {color}:")
    return Pair(*([prompt, Segment(f" {answer}", "assistant", True)] for answer in (color, other)))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    tokenizer = train_bpe([f"Name the color {w}: {w}" for w in WORDS] * 3, 300)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1)
    rows = [pair(a, b) for a in WORDS for b in WORDS if a != b]
    return SimpleNamespace(tokenizer=tokenizer, model=model, rows=rows, pairs=encode_pairs(rows, tokenizer)[0])


@pytest.fixture
def build(tmp_path):
    from transformers import TrainingArguments

    def make(trainer_cls, model, dataset, tokenizer, options, steps=1, lr=1e-3, batch=4, **more):
        args = TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=batch, max_steps=steps, learning_rate=lr,
            use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, bf16=False,
            remove_unused_columns=False, per_device_eval_batch_size=8,
        )  # fmt: skip
        return trainer_cls(
            model=model, args=args, train_dataset=dataset, tokenizer=tokenizer, options=options,
            train_config=TrainConfig(schedule="constant", warmup=0), **more,
        )  # fmt: skip

    return make


def log_probability(model, prompt: list[int], answer: list[int], which=None) -> torch.Tensor:
    """Summed log-probability of an answer, token by token from the model's own head."""
    ids = torch.tensor([prompt + answer])
    logits = model(ids).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer))
