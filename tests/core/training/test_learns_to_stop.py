"""A model whose padding id is its end-of-text id learns to stop: the end keeps its label in batches with padding."""

from __future__ import annotations

import torch

from core.config.schema import ModelConfig, TrainConfig
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import encode, encode_prompt
from core.data.segments import Segment
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.training.trainer import SupervisedTrainer


def test_padding_with_the_end_of_text_does_not_unlearn_it(tmp_path):
    from transformers import TrainingArguments

    tokenizer = train_bpe(["a b c d e f g h"], 300)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    letters = "abcdefgh"
    rows = [
        [Segment(f"{first}{count}=", "user", False), Segment(first * count, "assistant", True)]
        for first in letters
        for count in range(1, 6)
    ]
    data = EncodedDataset([encode(row, tokenizer) for row in rows])
    assert all(row.labels[-1] == end for row in data.rows)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=40, max_steps=200, learning_rate=4e-3, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    SupervisedTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=Collator(end), train_config=TrainConfig()
    ).train()
    model.eval()
    stopped = 0
    for row in rows:
        ids = torch.tensor([encode_prompt(row, tokenizer)])
        with torch.no_grad():
            for _ in range(12):
                following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, following], 1)
                if following.item() == end:
                    stopped += 1
                    break
    assert stopped >= 0.99 * len(rows)
