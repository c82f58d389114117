"""One job with LLaMA-Factory, as its documentation sets it: `python run_llamafactory.py --job J1`.

Its releases pin other versions than ours, so it runs in a virtual environment of its own (`GRAFT_PEERS/llamafactory`).
Rows are given as ids, in the form in which it stores rows that it has tokenised itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from benchmarks.peers.job import JOBS, PROJECTIONS, Clock, Job, model_folder, place, report, rows, same_start


def settings(job: Job, folder: Path, tokenized: Path, gpu: bool, liger: bool) -> dict[str, Any]:
    """The YAML that `llamafactory-cli train` takes."""
    given = {
        "model_name_or_path": str(folder),
        "stage": "sft",
        "do_train": True,
        "template": "default",
        "dataset": "rows",  # asked for, and not looked up where rows are tokenised already
        "tokenized_path": str(tokenized),
        "cutoff_len": job.length,
        "disable_shuffling": True,
        "finetuning_type": "lora" if job.rank else "full",
        "flash_attn": "sdpa",
        "enable_liger_kernel": liger,
        "disable_gradient_checkpointing": not job.checkpoint,
        "output_dir": str(place() / "out-llamafactory"),
        "overwrite_output_dir": True,
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "bf16": gpu and not job.fp32,
        "use_cpu": not gpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if job.rank:
        given |= {
            "lora_rank": job.rank,
            "lora_alpha": 2 * job.rank,
            "lora_dropout": 0.0,
            "lora_target": ",".join(PROJECTIONS),
        }
    if job.four_bit:
        given |= {"quantization_bit": 4, "quantization_method": "bnb", "double_quantization": True}
    return given


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True, choices=list(JOBS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--liger", action="store_true")
    given = parser.parse_args()
    job = JOBS[given.job]
    job = job if given.steps is None else dataclasses.replace(job, steps=given.steps)
    import torch
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    data = rows(job)
    tokenized = place() / "rows-llamafactory"
    shutil.rmtree(tokenized, ignore_errors=True)
    # nothing predicts a row's first token, and the transformers of this peer would count it among the trained ones
    labels = [[-100, *row[1:]] for row in data]
    columns = {"input_ids": data, "attention_mask": [[1] * len(row) for row in data], "labels": labels}
    DatasetDict({"train": Dataset.from_dict(columns)}).save_to_disk(str(tokenized))
    clock, history = Clock(), list[dict[str, Any]]()

    class Start(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            same_start(model)

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            history.extend(state.log_history)

    gpu = torch.cuda.is_available()
    shutil.rmtree(place() / "out-llamafactory", ignore_errors=True)
    folder = model_folder(job.shape, place())
    run_exp(settings(job, folder, tokenized, gpu, given.liger), callbacks=[Start(), clock.callback()])
    each = job.micro * job.accumulation
    tokens = [sum(len(row) for row in data[start : start + each]) for start in range(0, len(data), each)]
    report("llamafactory" + (" + liger-kernel" if given.liger else ""), job, clock, tokens, history)


if __name__ == "__main__":
    main()
