"""Ternary training against its float twin, and against rounding that twin to ternary afterwards (Kaushal et al. 2024).

All arms start from the same random weights and see the same batches of Python source (novels in the small form, of 60
steps); only the form of the linear maps differs. Rounding a float model after training is the ablation that shows what
training in the form is worth.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.data import data_root, read_lines
from benchmarks.quantization import ids_of, library, model_folder, nll
from benchmarks.sharing import together

WITHIN, ARMS = 1.08, ("float", "trilm", "bitlinear")


def measure(setting: Setting) -> Measured:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = setting.quick or device == "cpu"
    size = (64, 2, 4, 128, 60, 4) if small else (512, 8, 8, 512, 2000, 64)
    arms = ("float", "trilm") if small else ARMS
    found: dict[str, Any] = {}
    jobs = {arm: (_arm, (arm, device, size, small)) for arm in arms}
    for arm, (row, beside) in together(jobs, work=setting.work).items():
        found[arm] = row
        found |= beside
    vocabulary = found["float"].pop("vocabulary")
    for row in found.values():
        row["perplexity"] = round(math.exp(min(row["loss"], 50.0)), 3)
    ratio = math.exp(found["trilm"]["loss"] - found["float"]["loss"])
    margin = found["float rounded to ternary"]["loss"] - found["trilm"]["loss"]
    packed = max(abs(row["packed loss"] - row["loss"]) for row in found.values() if "packed loss" in row)
    # after the few steps of the small form the twins are still apart; training must beat rounding all the same
    limit = 1.5 if small else WITHIN
    return Measured(
        round(ratio, 4),
        ratio <= limit and margin > 0 and packed < 0.01,
        baseline={"float": found["float"]["perplexity"], "rounded": found["float rounded to ternary"]["perplexity"]},
        chance=f"{vocabulary}: perplexity of a uniform guess",
        details={"arms": found, "nats that training wins over rounding": round(margin, 4), "packed differs by": packed,
                 "device": device, "steps": size[4]},
    )  # fmt: skip


def _arm(
    arm: str, device: str, size: tuple[int, ...], small: bool
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """What an arm reached, and what its rounded copy did."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny-7m"))
    train, held = corpus(tokenizer) if small else library(tokenizer)
    start = time.perf_counter()
    model = trained(arm, fresh(*size[:3], len(tokenizer)).to(device), train, *size[3:])
    row = {"loss": nll(model, held), "seconds": round(time.perf_counter() - start, 1)}
    if arm == "float":
        row |= {"vocabulary": len(tokenizer), "tokens of text": train.numel()}
        return row, {"float rounded to ternary": {"loss": nll(rounded(model), held)}}
    from core.quantization.trained import pack

    return {**row, "packed loss": nll(pack(model), held)}, {}


def corpus(tokenizer: Any) -> tuple[Any, list[Any]]:
    """For the small form: ids of two novels in one row, held-out rows of 256 in batches, the last twentieth of each."""
    import torch

    books = sorted((data_root() / "lm" / "gutenberg").glob("*-*.txt"))[:2]
    train, held = [], []
    for book in books:
        lines = read_lines(str(book.relative_to(data_root())))[:4000]
        cut = len(lines) * 19 // 20
        train.append(ids_of(tokenizer, lines[:cut]))
        held.append(ids_of(tokenizer, lines[cut:]))
    test = torch.cat(held)
    count = min(8, test.numel() // 256)
    return torch.cat(train), list(test[: count * 256].view(count, 256).split(8))


def fresh(hidden: int, layers: int, heads: int, vocabulary: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=1024, tie_word_embeddings=True,
        )
    )  # fmt: skip


def trained(arm: str, model: Any, ids: Any, length: int, steps: int, batch: int) -> Any:
    """`model` after `steps` of AdamW with warm-up and linear decay; a ternary run drops weight decay at two thirds."""
    import torch

    from core.config.schema import BackendConfig
    from core.quantization.trained import make_trainable
    from core.training.speed import made_fast

    device = next(model.parameters()).device
    peak = 1.5e-3
    if arm != "float":
        model, peak = make_trainable(model, arm), 2.4e-3
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, steps // 20)
    with made_fast(model, BackendConfig(), device):
        for step, rows in zip(range(steps), batches(ids, length, batch)):
            share = min((step + 1) / warm, (steps - step) / (steps - warm))
            for group in optimizer.param_groups:
                group["lr"] = peak * max(0.0, share)
                group["weight_decay"] = 0.0 if arm != "float" and step > steps * 2 // 3 else 0.1
            rows = rows.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(input_ids=rows, labels=rows, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval()


def batches(ids: Any, length: int, size: int) -> Iterator[Any]:
    """The same batches for every arm."""
    import torch

    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(0, ids.numel() - length, (size,), generator=generator)
        yield torch.stack([ids[s : s + length] for s in starts.tolist()])


def rounded(model: Any) -> Any:
    """A copy whose linear maps are rounded to ternary, nothing trained."""
    from core.quantization import parse
    from core.quantization.solvers import ste

    return ste.pack(ste.make_trainable(copy.deepcopy(model), parse("trilm")))


BAR = Bar(
    "quantization.ternary",
    "Perplexity of TriLM from scratch over its float twin's, same data and steps",
    "ratio of perplexities",
    f"≤ {WITHIN:g}, and far below the twin rounded to ternary",
    "gpu",
    6,
    measure,
    small=1,
)
