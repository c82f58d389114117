"""The recipe's words in transformers' words, in one place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from core.config.schema import Recipe


def training_arguments(recipe: Recipe, sizes: dict[str, int], folder: Path, device: str) -> Any:
    """`TrainingArguments` for a stage.

    Logging costs a synchronisation, so on a GPU it happens about 200 times a run, on a CPU at every step. transformers
    5.23 renames the checkpointing switch; the old name works in all supported versions and its warning is silenced.
    """
    from transformers import TrainingArguments

    train, backend = recipe.train, recipe.backend
    cpu = device == "cpu"
    bf16 = backend.precision.compute == "bf16" or (backend.precision.compute == "auto" and not cpu)
    pinned = backend.async_input and not cpu
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=sizes["micro"],
            gradient_accumulation_steps=sizes["accumulation"],
            max_steps=sizes["steps"],
            learning_rate=train.lr,
            adam_beta1=train.betas[0],
            adam_beta2=train.betas[1],
            weight_decay=train.weight_decay,
            max_grad_norm=train.clip,
            optim="adamw_torch" if backend.optimizer_step == "plain" else "adamw_torch_fused",
            seed=recipe.seed,
            data_seed=recipe.seed,
            bf16=bf16,
            use_cpu=cpu,
            gradient_checkpointing=backend.activation_checkpoint == "full",
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=1 if cpu else max(1, sizes["steps"] // 200),
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=recipe.checkpoint.every,
            eval_strategy="no",
            disable_tqdm=True,
            report_to=list(recipe.trackers),
            remove_unused_columns=False,
            dataloader_num_workers=backend.workers,
            dataloader_pin_memory=pinned,
            accelerator_config={"non_blocking": pinned},
            average_tokens_across_devices=True,
            ddp_find_unused_parameters=False,
            label_names=["labels"],
        )
    return on_one_gpu(arguments)


def on_one_gpu(arguments: Any) -> Any:
    """One process trains on one GPU.

    Where a process sees several, transformers would otherwise lay torch's DataParallel over the model and multiply the
    micro-batch by their number, so that the same recipe took other steps on another machine.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
