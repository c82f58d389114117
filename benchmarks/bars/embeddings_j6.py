"""Contrastive training beside sentence-transformers: samples a second, and one process against two.

The same random encoder of MPNet-base's shape, the same pairs, batch 512 and bf16 on both sides; sentence-transformers
runs its trainer with `CachedMultipleNegativesRankingLoss`, whose mini-batch is the best of three. Ours keeps the graph
of what fits into memory and encodes only the rest twice. The loss of a step on two processes must be that of one: that
part runs on the CPU in float32.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.embedding_sets import stsb

FACTOR, EQUAL, BATCH = 1.2, 1e-5, 512
STEPS, WARM = 16, 4
SHAPE = {"vocab_size": 8192, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "max_position_embeddings": 512}  # fmt: skip
SMALL = {**SHAPE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def measure(setting: Setting) -> Measured:
    steps = 8 if setting.quick else STEPS
    folder = encoder(setting.work / "encoder", SMALL if setting.quick else SHAPE)
    first = ours_speed(folder, steps, setting.work / "ours")
    theirs = {size: library_speed(folder, steps, size, setting.work / f"theirs{size}") for size in (32, 128, 512)}
    ours = min(first, after := ours_speed(folder, steps, setting.work / "ours"))
    difference = two_processes(setting.work)
    best = max(theirs.values())
    return Measured(
        round(ours / best, 2),
        ours / best >= FACTOR and difference <= EQUAL,
        baseline={"sentence-transformers, samples/s by mini-batch": {k: round(v) for k, v in theirs.items()}},
        details={
            "samples/s before and after": [round(first), round(after)],
            "one process against two, relative difference of losses": difference,
        },
    )


def encoder(folder: Path, shape: dict[str, int]) -> Path:
    """A random encoder with a tokenizer trained on the pairs."""
    import torch
    from transformers import BertConfig, BertModel

    from core.models.tokenizer import train_bpe

    torch.manual_seed(0)
    tokenizer = train_bpe([text for p in stsb("train") for text in (p.text, p.text2)], shape["vocab_size"])
    shape = {**shape, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id or 0}
    BertModel(BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairs(count: int) -> list[tuple[str, str]]:
    """Sentence pairs of real lengths: STS-B's, joined by twos and threes so that lengths vary as in retrieval."""
    rows = stsb("train")
    found = []
    for number in range(count):
        parts = [rows[(number * 3 + i) % len(rows)] for i in range(1 + number % 8)]
        found.append((f"{number} {rows[number % len(rows)].text}", " ".join(p.text2 for p in parts)))
    return found


def arguments(folder: Path, steps: int) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": BATCH, "bf16": gpu,
        "use_cpu": not gpu, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1000,
        "dataloader_num_workers": 4, "seed": 0,
    }  # fmt: skip


class Clock:
    """Seconds between the end of the warm-up steps and the last one."""

    def __new__(cls) -> Any:
        import torch
        from transformers import TrainerCallback

        class Timer(TrainerCallback):
            start = end = 0.0

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if state.global_step == WARM:
                    self.start = time.perf_counter()
                self.end = time.perf_counter()

        return Timer()


def ours_speed(folder: Path, steps: int, work: Path) -> float:
    from functools import partial

    from transformers import AutoTokenizer, TrainingArguments

    from apps.embeddings.methods.contrastive import Row, encode_rows
    from apps.embeddings.model import build_model
    from apps.embeddings.objective import info_nce
    from apps.embeddings.trainer import ContrastiveTrainer
    from core.config.schema import ModelConfig, TrainConfig
    from core.training.arguments import on_one_gpu

    emptied()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = build_model(ModelConfig(path=str(folder)), tokenizer, device=device())
    rows = [Row(query, text, (), "", "") for query, text in pairs(BATCH * steps)]
    data, _ = encode_rows(rows, tokenizer, template="none", mode="offsets", max_length=256)
    clock = Clock()
    trainer = ContrastiveTrainer(
        model=model, args=on_one_gpu(TrainingArguments(**arguments(work, steps), remove_unused_columns=False)),
        train_dataset=data, callbacks=[clock], train_config=TrainConfig(),
        objective=partial(info_nce, temperature=0.05), batch=BATCH, distinct=True, pad=tokenizer.pad_token_id or 0,
    )  # fmt: skip
    trainer.train()
    return BATCH * (steps - WARM) / (clock.end - clock.start)


def library_speed(folder: Path, steps: int, mini_batch: int, work: Path) -> float:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling

    emptied()
    first = Transformer(str(folder), max_seq_length=256)
    modules = [first, Pooling(first.get_embedding_dimension(), pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(modules=modules, device=device())
    queries, texts = zip(*pairs(BATCH * steps))
    clock = Clock()
    trainer = SentenceTransformerTrainer(
        model=model, args=SentenceTransformerTrainingArguments(**arguments(work, steps)),
        train_dataset=Dataset.from_dict({"anchor": list(queries), "positive": list(texts)}), callbacks=[clock],
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch),
    )  # fmt: skip
    trainer.train()
    return BATCH * (steps - WARM) / (clock.end - clock.start)


def emptied() -> None:
    """Give back what an earlier side of the comparison still holds of the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


SCRIPT = """
import os, sys, torch, torch.distributed as dist
from functools import partial
from apps.embeddings.methods.contrastive import Row, encode_rows
from apps.embeddings.model import build_model
from apps.embeddings.objective import info_nce
from apps.embeddings.trainer import ChunkCollator, step
from core.config.schema import ModelConfig
from core.models.tokenizer import train_bpe
from benchmarks.bars.embeddings_j6 import pairs
dist.init_process_group("gloo")
rank, world, texts = dist.get_rank(), dist.get_world_size(), pairs(320)
tokenizer = train_bpe([t for pair in texts for t in pair], 600)
model = build_model(ModelConfig(preset="tiny"), tokenizer, device="cpu", seed=0)
data, _ = encode_rows([Row(q, p, (), "", "") for q, p in texts], tokenizer, template="none", mode="", max_length=64)
optimizer, collate = torch.optim.AdamW(model.parameters(), 1e-3), ChunkCollator(0, 2048)
for start in range(0, 320, 32):
    own = 32 // world
    inputs = collate([data[start + rank * own + i] for i in range(own)])
    print(f"{float(step(model, inputs, partial(info_nce, temperature=0.05), 4096)):.9f}") if rank == 0 else step(
        model, inputs, partial(info_nce, temperature=0.05), 4096)
    optimizer.step(); optimizer.zero_grad()
dist.destroy_process_group()
"""


def two_processes(work: Path) -> float:
    """Largest relative difference of ten steps' losses."""
    script = work / "processes.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = []
    for count in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={count}",
            str(script),
        ]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found.append([float(line) for line in done.stdout.split()])
    if len(found[0]) != 10 or found[0][-1] >= found[0][0]:
        raise RuntimeError(f"nothing was learnt: {found[0]}")
    return max(abs(a - b) / abs(a) for a, b in zip(*found))


BAR = Bar(
    "embeddings.J6",
    "contrastive training against sentence-transformers, batch 512; losses of one and of two processes",
    "× sentence-transformers' samples/s",
    f"≥ {FACTOR:g}; losses equal within {EQUAL:g}",
    "gpu",
    2,
    measure,
)
