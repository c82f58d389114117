"""One job with Unsloth, as its documentation sets it: `python run_unsloth.py --job J1`.

It runs as a separate process, in an environment of its own: nothing of it is imported by this repository. Rows, order,
model and clock are those of `job.py`; its own checkpointing is used where a job asks for checkpointing.
"""

import unsloth  # noqa: I001  (it insists on being first)

import argparse
import dataclasses
import os
from typing import Any

from benchmarks.peers.job import JOBS, PROJECTIONS, Clock, model_folder, place, report, rows, same_start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True, choices=list(JOBS))
    parser.add_argument("--steps", type=int, default=None)
    given = parser.parse_args()
    job = JOBS[given.job]
    job = job if given.steps is None else dataclasses.replace(job, steps=given.steps)
    import torch
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(model_folder(job.shape, place())),
        max_seq_length=job.length,
        load_in_4bit=job.four_bit,
        dtype=torch.bfloat16 if gpu else torch.float32,
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=job.rank,
        lora_alpha=2 * job.rank,
        lora_dropout=0,
        bias="none",
        target_modules=PROJECTIONS,
        use_gradient_checkpointing="unsloth" if job.checkpoint else False,
        random_state=0,
    )
    same_start(model)
    data = rows(job)
    clock = Clock()

    class InOrder(SFTTrainer):  # type: ignore[misc,valid-type]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    trainer = InOrder(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": data, "labels": data}),
        args=SFTConfig(
            output_dir=str(place() / "out-unsloth"),
            per_device_train_batch_size=job.micro,
            gradient_accumulation_steps=job.accumulation,
            max_steps=job.steps,
            learning_rate=job.lr,
            lr_scheduler_type="constant",
            warmup_steps=0,
            max_length=job.length,
            packing=False,
            bf16=gpu,
            use_cpu=not gpu,
            optim="adamw_torch_fused",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        callbacks=[clock.callback()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    each = job.micro * job.accumulation
    tokens = [sum(len(row) for row in data[start : start + each]) for start in range(0, len(data), each)]
    environment = {name: value for name, value in os.environ.items() if name.startswith("UNSLOTH_")}
    report("unsloth", job, clock, tokens, trainer.state.log_history, environment=environment)


if __name__ == "__main__":
    main()
