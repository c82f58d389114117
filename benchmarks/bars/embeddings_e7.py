"""Encoding with latent attention beside sentence-transformers with the mean, and what the latents cost in memory.

The same random encoder of BERT-base's shape in bf16, the same 8,192 texts of mixed lengths. sentence-transformers takes
the best of three batch sizes; ours gets the token budget it always has. Peak memory is that of our own encoding with
latent attention over that with the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.bars.embeddings_j6 import SHAPE, SMALL, device, encoder, pairs

SHARE, OVERHEAD, REPEATS = 0.9, 0.10, 3
EDITS = {"latent": {"kind": "embedding", "pooling": "latent", "latents": 512, "heads": 8},
         "mean": {"kind": "embedding", "pooling": "mean"}}  # fmt: skip


def measure(setting: Setting) -> Measured:
    folder = encoder(setting.work / "encoder", SMALL if setting.quick else SHAPE)
    texts = [text for pair in pairs(64 if setting.quick else 4096) for text in pair]
    ours = {name: ours_of(folder, edit, texts) for name, edit in EDITS.items()}
    theirs = {size: theirs_of(folder, texts, size) for size in (32, 128, 512)}
    share = ours["latent"]["texts/s"] / max(theirs.values())
    overhead = ours["latent"]["peak"] / ours["mean"]["peak"] - 1 if ours["mean"]["peak"] else None
    return Measured(
        round(share, 2),
        share >= SHARE and (overhead is None or overhead <= OVERHEAD),
        baseline={"sentence-transformers, mean, texts/s by batch": {k: round(v) for k, v in theirs.items()}},
        details={
            "texts/s": {name: round(own["texts/s"]) for name, own in ours.items()},
            "peak MiB": {name: round(own["peak"] / 2**20, 1) for name, own in ours.items()},
            "memory of the latents": None if overhead is None else round(overhead, 3),
        },
    )


def ours_of(folder: Path, edit: dict[str, Any], texts: list[str]) -> dict[str, float]:
    import torch

    from apps.embeddings import EmbeddingPipeline
    from apps.embeddings.model import build_model
    from core.config.schema import ModelConfig
    from core.config.typed import build
    from core.models.load import load_tokenizer

    config = build(ModelConfig, {"path": str(folder), "dtype": dtype(), "edits": [edit]})
    tokenizer = load_tokenizer(config)
    model = build_model(config, tokenizer, device=device()).eval()
    model.pooling.to(model.states_dtype)
    with EmbeddingPipeline.from_model(model, tokenizer) as embed:
        embed(texts[:64])
        if device() == "cuda":
            torch.cuda.reset_peak_memory_stats()
        speed = texts_a_second(lambda: embed(texts), len(texts))
        peak = torch.cuda.max_memory_allocated() if device() == "cuda" else 0
    return {"texts/s": speed, "peak": peak}


def theirs_of(folder: Path, texts: list[str], batch: int) -> float:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    first = Transformer(str(folder), max_seq_length=512, model_kwargs={"dtype": {"bf16": "bfloat16"}.get(dtype())})
    modules = [first, Pooling(first.get_embedding_dimension(), pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(modules=modules, device=device())
    options: dict[str, Any] = {"batch_size": batch, "show_progress_bar": False}
    model.encode(texts[:64], **options)
    return texts_a_second(lambda: model.encode(texts, **options), len(texts))


def dtype() -> str:
    return "bf16" if device() == "cuda" else "fp32"


def texts_a_second(encode: Callable[[], Any], count: int) -> float:
    """The best of three runs; vectors come back to the host, so that nothing is left running."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        encode()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


BAR = Bar(
    "embeddings.E7",
    "encoding with latent attention beside sentence-transformers with the mean",
    "× sentence-transformers' texts/s",
    f"≥ {SHARE:g}; latents add at most {OVERHEAD:.0%} of peak memory",
    "gpu",
    2,
    measure,
)
