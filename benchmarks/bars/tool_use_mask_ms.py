"""What a schema costs while a model generates, and that it is kept: 10⁴ random schemas, random logits, two tokenizers.

The time is that of masks and states over all steps, first uses of a schema included and its compilation beside. Every
text is parsed and validated by the jsonschema package. Logits are random, so nothing but the constraint makes the text.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.data import data_root
from benchmarks.schemas import random_schema

TARGET_MS, SCHEMAS, TOKENS, NOISE = 0.3, 10_000, 96, 64


def measure(setting: Setting) -> Measured:
    count = 200 if setting.quick else SCHEMAS
    rows = {name: run(tokenizer, count) for name, tokenizer in tokenizers().items()}
    slowest = max(row["ms_per_token"] for row in rows.values())
    valid = all(row["valid"] == row["schemas"] for row in rows.values())
    return Measured(
        round(slowest, 4),
        slowest <= TARGET_MS and valid,
        chance=f"{unconstrained(rows)} valid without the constraint",
        details=rows,
    )


def tokenizers() -> dict[str, Any]:
    """One of 8k tokens and one of 50k."""
    from transformers import AutoTokenizer, GPT2TokenizerFast

    root = data_root()
    small, large = root.parent / "models" / "small-22m", root / "tokenizers" / "gpt2"
    for place in (small, large):
        if not place.is_dir():
            raise Unavailable(f"{place.name} is not in the data folder")
    gpt2 = GPT2TokenizerFast(vocab=str(large / "vocab.json"), merges=str(large / "merges.txt"))
    return {"8k": AutoTokenizer.from_pretrained(small), "50k": gpt2}


def run(tokenizer: Any, count: int) -> dict[str, Any]:
    """Generate under `count` schemas with random logits."""
    import jsonschema
    import numpy as np

    from core.inference.constrained import JsonConstraint
    from core.inference.constrained.masks import vocabulary_of

    rng, noise = random.Random(0), np.random.default_rng(0)
    start = time.perf_counter()
    size = vocabulary_of(tokenizer).size
    preparing = time.perf_counter() - start
    logits = noise.gumbel(size=(NOISE, size)).astype(np.float32)
    compiling = stepping = 0.0
    steps = valid = 0
    wrong = []
    for _ in range(count):
        schema = random_schema(rng)
        start = time.perf_counter()
        constraint = JsonConstraint.of_schema(schema, tokenizer)
        compiling += time.perf_counter() - start
        room = max(TOKENS, constraint.shortest)
        state, ids = constraint.start, []
        while len(ids) < room:
            start = time.perf_counter()
            mask = constraint.allowed(state, room - len(ids))
            stepping += time.perf_counter() - start
            token = int(np.where(mask, logits[rng.randrange(NOISE)], -np.inf).argmax())
            if token in constraint.vocabulary.end:
                break
            ids.append(token)
            start = time.perf_counter()
            state = constraint.advance(state, token)
            stepping += time.perf_counter() - start
        steps += len(ids) + 1
        text = b"".join(constraint.vocabulary.bytes[i] or b"" for i in ids).decode("utf-8", "replace")
        try:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            valid += 1
        except (json.JSONDecodeError, jsonschema.ValidationError) as error:
            wrong.append({"schema": schema, "text": text[:200], "error": str(error).splitlines()[0]})
    return {
        "vocabulary": size,
        "schemas": count,
        "valid": valid,
        "tokens": steps,
        "ms_per_token": round(stepping / steps * 1e3, 4),
        "compile_ms_per_schema": round(compiling / count * 1e3, 3),
        "prepare_vocabulary_s": round(preparing, 2),
        "wrong": wrong[:3],
    }


def unconstrained(rows: dict[str, Any]) -> int:
    """Random tokens are no JSON: the figure is the number of schemas that the empty text satisfies."""
    return 0


BAR = Bar(
    "tool_use.mask_ms",
    "schema-constrained decoding: time of the mask a token, and random texts that are valid",
    "ms",
    f"≤ {TARGET_MS:g} at 8k and 50k tokens, all valid",
    "cpu",
    6,
    measure,
)
