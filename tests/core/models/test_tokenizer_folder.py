"""A tokenizer may live in a folder without a model: several runs can share one."""

from __future__ import annotations

import pytest

from core.config.schema import ModelConfig
from core.errors import CheckpointError
from core.models.load import load_tokenizer
from core.models.tokenizer import train_bpe


def test_a_folder_with_a_tokenizer_alone(tmp_path):
    made = train_bpe(["Two dogs run through the snow."] * 4, 300)
    made.save_pretrained(tmp_path / "shared")
    found = load_tokenizer(ModelConfig(preset="tiny", tokenizer=str(tmp_path / "shared")))
    text = "Two dogs — zwei Hunde"
    assert found(text)["input_ids"] == made(text)["input_ids"]
    assert found.eos_token_id != found.pad_token_id


def test_a_folder_without_one(tmp_path):
    with pytest.raises(CheckpointError, match="holds no"):
        load_tokenizer(ModelConfig(preset="tiny", tokenizer=str(tmp_path)))
