"""Readers of preferences: a source with a better and a worse translation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.translation.example import TranslationExample, example_from
from apps.translation.languages import language
from apps.translation.reading import json_rows, required
from core.data.reading import reject
from core.errors import DataError


def triplets(
    path: str | Path, *, split: str | None = None, on_bad: Any = None, src: str = "", tgt: str = ""
) -> Iterator[TranslationExample]:
    """As `jsonl`, and every row has a better and a worse translation: `tgt` (or `chosen`) and `rejected`."""
    file = required(Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else path)
    for number, row in json_rows(file, on_bad):
        try:
            if isinstance(row, dict) and "chosen" in row:
                row = {**row, "tgt": row["chosen"]}
                del row["chosen"]
            example = example_from(row, src=src, tgt=tgt, file=file, line=number)
            for name in ("tgt", "rejected"):
                if not (getattr(example, name) or "").strip():
                    raise DataError("no translation", file=file, line=number, field=name, expected="a sentence")
            if example.tgt == example.rejected:
                raise DataError("the better translation is the worse one", file=file, line=number, got=example.tgt)
            yield example
        except DataError as error:
            reject(on_bad, error)


def embedded_triplets(
    path: Any = None, *, split: str | None = None, on_bad: Any = None, src: str = "de", tgt: str = "en", seed: int = 0
) -> Iterator[TranslationExample]:
    """The corpus that ships; the worse translation is the right one with words dropped, doubled and moved."""
    from core.data.embedded import pairs
    from core.data.embedded.noise import noisy

    rng = random.Random(seed)
    flip = language(src).code == "en"
    for number, pair in enumerate(pairs(split or "train", seed=seed)):
        source, target = pair[::-1] if flip else pair
        worse = noisy(target, rng)
        if worse != target:
            codes = ("en", "de") if flip else ("de", "en")
            yield TranslationExample(source, target, *codes, domain="embedded", id=str(number), rejected=worse)
