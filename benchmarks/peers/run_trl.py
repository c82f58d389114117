"""One job with TRL's SFTTrainer and peft, as its documentation sets them: `python -m benchmarks.peers.run_trl`.

`--liger` turns on liger-kernel's layers, `--packing` TRL's own packing (best fit). Rows, order, model and clock are
those of `job.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from benchmarks.peers.job import JOBS, PROJECTIONS, Clock, Job, model_folder, place, report, rows, same_start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True, choices=list(JOBS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--packing", action="store_true")
    given = parser.parse_args()
    job = JOBS[given.job]
    job = job if given.steps is None else dataclasses.replace(job, steps=given.steps)
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    folder = model_folder(job.shape, place())
    options: dict[str, Any] = {"dtype": torch.float32 if job.fp32 else torch.bfloat16, "attn_implementation": "sdpa"}
    if job.four_bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cuda" if gpu else "cpu", **options)
    if job.rank:
        if job.four_bit:
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        lora = LoraConfig(
            r=job.rank, lora_alpha=2 * job.rank, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
        )
        model = same_start(get_peft_model(model, lora))
    data = rows(job)
    tokens = _tokens(data, job)
    clock = Clock()
    arguments = SFTConfig(
        output_dir=str(place() / "out-trl"),
        per_device_train_batch_size=job.micro,
        gradient_accumulation_steps=job.accumulation,
        max_steps=job.steps,
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_length=job.length,
        packing=given.packing,
        bf16=gpu and not job.fp32,
        use_cpu=not gpu,
        gradient_checkpointing=job.checkpoint,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=given.liger,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        dataset_kwargs=None if given.packing else {"skip_prepare_dataset": True},
    )
    trainer = _in_order(SFTTrainer)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": data}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock.callback()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    name = "trl" + (" + liger-kernel" if given.liger else "") + (" packing" if given.packing else "")
    if given.packing:
        # packed rows were put together by TRL: count what it made of them
        packed = [len(row) for row in trainer.train_dataset["input_ids"][:]]
        each = job.micro * job.accumulation
        tokens = [sum(packed[start : start + each]) for start in range(0, len(packed), each)]
    report(name, job, clock, tokens, trainer.state.log_history)


def _in_order(base: type) -> type:
    """The trainer with rows in the order in which they come."""
    import torch

    class InOrder(base):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    return InOrder


def _tokens(data: list[list[int]], job: Job) -> list[int]:
    each = job.micro * job.accumulation
    return [sum(len(row) for row in data[start : start + each]) for start in range(0, len(data), each)]


if __name__ == "__main__":
    main()
