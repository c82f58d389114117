"""A pipeline costs next to nothing over `model.generate` on the same batches.

The same prompts in the same batches with the same beams go through `TranslationPipeline` and through a plain loop of
tokenising, padding, generating and decoding, in turns; the figure is the median of the ratios of a turn.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

SHARE, TURNS, SENTENCES, NEW_TOKENS, ROWS = 0.95, 5, 128, 24, 32


def measure(setting: Setting) -> Measured:
    from core.inference.batching import length_buckets

    turns, count = (3, 32) if setting.quick else (TURNS, SENTENCES)
    translate = open_pipeline()
    sources = german(count)
    prompts = [translate.prepare(translate.to_example(s, src="de", tgt="en")).text for s in sources]
    lengths = [len(ids) + NEW_TOKENS for ids in translate.tokenizer(prompts)["input_ids"]]
    plan = length_buckets(lengths, 1 << 30, ROWS)
    ratios, rows = {}, []
    for beams in (1, 4):

        def ours(beams: int = beams) -> int:
            settings = {"beams": beams, "max_new_tokens": NEW_TOKENS, "max_tokens": 1 << 30, "max_size": ROWS}
            return sum(r.meta["tokens"] for r in translate.batch(sources, src="de", tgt="en", **settings))

        def raw(beams: int = beams) -> int:
            return generate(translate.engine.model, translate.tokenizer, prompts, plan, beams)

        ours(), raw()
        times = [(timed(raw), timed(ours)) for _ in range(turns)]
        ratios[beams] = [plain / own for plain, own in times]
        rows.append(
            {"beams": beams, "raw_s": [round(a, 3) for a, _ in times], "ours_s": [round(b, 3) for _, b in times]}
        )
    medians = {beams: round(statistics.median(found), 3) for beams, found in ratios.items()}
    worst = min(medians.values())
    details = {"model": "embedded", "sentences": count, "by beams": medians, "turns": rows}
    return Measured(worst, worst >= SHARE, baseline="1: a plain loop over model.generate", details=details)


def open_pipeline() -> Any:
    """The shipped model: it ends its answers, so that both sides do the same steps."""
    from apps.translation import TranslationPipeline
    from core.errors import GraftError

    try:
        return TranslationPipeline.from_pretrained("embedded", device="cpu")
    except GraftError as error:
        raise Unavailable(str(error).splitlines()[0]) from error


def german(count: int) -> list[str]:
    from core.data.embedded import pairs

    return [text for text, _ in pairs("train", limit=count)]


def generate(model: Any, tokenizer: Any, prompts: list[str], plan: list[list[int]], beams: int) -> int:
    """The plain loop; the number of new tokens."""
    import torch

    total = 0
    for part in plan:
        batch = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                num_beams=beams,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        total += int((new != tokenizer.pad_token_id).sum())
        tokenizer.batch_decode(new, skip_special_tokens=True)
    return total


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


BAR = Bar(
    "translation.T10",
    "pipeline throughput over raw model.generate, equal batches and beams",
    "ratio",
    f"≥ {SHARE:g} for 1 and 4 beams",
    "cpu",
    3,
    measure,
)
