"""What a training step of SpIEL costs beside LoRA's, on blocks of a 7B model's shape with random weights.

Four blocks of width 4096 (of 32; the rest would repeat them) with a bf16 base, sequences of 2048 tokens, two at a
time: SpIEL at the density that gives 160M entries on the whole model, peft's LoRA of rank 64, and our fused LoRA of the
same rank. SpIEL runs on transformers' layers against peft's LoRA, and on our fused layers against our fused LoRA. Times
are medians of whole steps; a whole cycle of SpIEL, with the window in which it watches gradients and the exchange that
follows, is given beside them. Memory is scaled from two and four blocks to all 32.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

TOKENS, ROWS, RANK, ENTRIES, BLOCKS = 2048, 2, 64, 159_907_840, 32
MOST_PEFT, MOST_FUSED, MOST_CHECKPOINTED, MOST_GIB = 1.15, 1.5, 1.35, 2.0


def shape(blocks: int, quick: bool) -> dict[str, Any]:
    wide = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    small = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "num_key_value_heads": 4}
    return {"vocab_size": 256 if quick else 32000, "num_hidden_layers": blocks, **(small if quick else wide)}


def build(arm: str, blocks: int, quick: bool, device: str) -> Any:
    """The blocks with one adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from core.sparse import SpielConfig

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape(blocks, quick), attn_implementation="sdpa"))
    model = model.to(torch.float32 if quick else torch.bfloat16)
    entries = max(8 * blocks, ENTRIES * blocks // BLOCKS // (4096 if quick else 1))
    moving = {"reselection_steps": 4, "accumulation_steps": 2} if quick else {}
    config = SpielConfig(num_tunable_weights=entries, **moving) if "spiel" in arm else LoraConfig(
        r=4 if quick else RANK, target_modules="all-linear"
    )  # fmt: skip
    model = get_peft_model(model, config)
    return model


def timed(arm: str, blocks: int, quick: bool, recompute: bool, device: str) -> dict[str, float]:
    """Seconds of a step, of SpIEL also of one in a whole cycle of selection, and the peak in GiB on a GPU."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = _timed(arm, blocks, quick, recompute, device)
    gc.collect()
    if device == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.empty_cache()
    return found


def _timed(arm: str, blocks: int, quick: bool, recompute: bool, device: str) -> dict[str, float]:
    import contextlib

    import torch

    from core.config.schema import BackendConfig
    from core.sparse.spiel_optim import SpielAdamW
    from core.training.speed import made_fast

    model = build(arm, blocks, quick, device)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = SpielAdamW(learning) if "spiel" in arm else torch.optim.AdamW(learning, fused=not quick)
    selection = Selection(model) if "spiel" in arm else None
    rows, tokens = (1, 32) if quick else (ROWS, TOKENS)
    ids = torch.randint(0, 255, (rows, tokens), device=device)

    def step() -> float:
        start = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if selection is not None:
            selection.step(optimizer)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    fast = made_fast(model, BackendConfig(), torch.device(device)) if "fused" in arm else contextlib.nullcontext()
    with fast:
        found = {"step": statistics.median([step() for _ in range(3 if quick else 10)][2:]), "peak": 0.0}
        if selection is not None and not recompute:
            selection.begin()
            found["cycle"] = statistics.mean(step() for _ in range(selection.every))
            found["exchanged"] = selection.callback.replaced
    return found


class Selection:
    """SpIEL's own callback, driven by hand: a window opens at once and closes after as many steps as it lasts."""

    def __init__(self, model: Any) -> None:
        from core.sparse.spiel_training import SpielCallback

        self.callback = SpielCallback(next(iter(model.peft_config.values())))
        self.callback.take_layers(model)
        self.model, self.every, self.left = model, self.callback.every, 0

    def begin(self) -> None:
        self.callback.open(self.model, 0, 1)
        self.left = self.callback.window

    def step(self, optimizer: Any) -> None:
        if self.left:
            self.callback.end_step()
            self.left -= 1
            if not self.left:
                self.callback.close(self.model, optimizer, 0, 1)


def measure(setting: Setting) -> Measured:
    import torch

    quick = setting.quick
    if not quick and not torch.cuda.is_available():
        raise Unavailable("needs a GPU")
    device = "cuda" if torch.cuda.is_available() and not quick else "cpu"
    found: dict[str, dict[str, float]] = {}
    for arm in ("lora", "spiel", "fused lora", "fused spiel"):
        kept, high, low = (timed(arm, *how, device) for how in ((4, quick, False), (4, quick, True), (2, quick, True)))
        whole = low["peak"] + (high["peak"] - low["peak"]) / 2 * (BLOCKS - 2)
        found[arm] = {**kept, "recomputed": high["step"], "peak of 32, recomputed": whole}
    plain, fused = (found[f"{kind}spiel"]["step"] / found[f"{kind}lora"]["step"] for kind in ("", "fused "))
    again = found["fused spiel"]["recomputed"] / found["fused lora"]["recomputed"]
    more = found["spiel"]["peak of 32, recomputed"] - found["lora"]["peak of 32, recomputed"]
    lora = found["lora"]["step"]
    passed = plain <= MOST_PEFT and fused <= MOST_FUSED and again <= MOST_CHECKPOINTED and more <= MOST_GIB
    moved = found["spiel"]["exchanged"] > 0 and found["fused spiel"]["exchanged"] > 0
    rounded = {arm: {key: round(value, 4) for key, value in row.items()} for arm, row in found.items()}
    return Measured(
        round(plain, 3),
        False if not moved else passed if device == "cuda" else None,
        baseline={arm: rounded[arm] for arm in ("lora", "fused lora")},
        chance="none",
        details={
            "found": rounded,
            "over peft's LoRA": round(plain, 3),
            "the same over a whole cycle of selection": round(found["spiel"]["cycle"] / lora, 3),
            "fused, over our fused LoRA": round(fused, 3),
            "the same, activations recomputed": round(again, 3),
            "GiB above LoRA, 32 blocks": round(more, 3),
        },
    )


BAR = Bar(
    "methods.spiel_speed",
    "a step of SpIEL with 160M entries on a 7B shape",
    "× the step of peft's LoRA of rank 64",
    "≤ 1.15; ≤ 1.5 × our fused LoRA, ≤ 1.35 with recomputed activations; ≤ 2 GiB above LoRA",
    "gpu",
    2,
    measure,
)
