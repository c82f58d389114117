"""The recipe's words in transformers' words."""

from __future__ import annotations

from core.training.arguments import on_one_gpu


def test_a_process_that_sees_two_gpus_trains_on_one_with_the_recipes_batch(tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=6, use_cpu=True)
    assert arguments.n_gpu == 0 and on_one_gpu(arguments).n_gpu == 0
    arguments._n_gpu = 2
    assert arguments.train_batch_size == 12, "what transformers does, which is why this exists"
    assert on_one_gpu(arguments).n_gpu == 1 and arguments.train_batch_size == 6
