"""The German-English text that ships: handwritten everyday sentences, and a grammar's.

Splits are compositional: about a twelfth of all word combinations (verb with object, adjective with noun, …) is held
out for `test` and as many for `dev`. A training sentence contains no held-out combination, a test sentence at least
one, and every word of it occurs in training: what is measured is putting known words together in new ways.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from core.data.embedded.grammar import Sentence, sentence
from core.data.embedded.noise import with_noise
from core.errors import DataError

Split = Literal["train", "dev", "test"]
SIZES = {"train": 8000, "dev": 300, "test": 500}
SHARE = 12
MONOLINGUAL = 60_000
_STREAMS = {"train": 1, "dev": 2, "test": 3, "de": 4, "en": 5, "noise": 6}


def split_of(made: Sentence) -> str | None:
    """Where a sentence belongs; None when it mixes combinations held out for dev and for test."""
    kinds = {zlib.crc32("|".join(pair).encode()) % SHARE for pair in made.pairs}
    if 0 in kinds:
        return None if 1 in kinds else "test"
    return "dev" if 1 in kinds else "train"


def handwritten() -> list[tuple[str, str]]:
    """(German, English) sentences written by hand; part of the training text only."""
    lines = (Path(__file__).parent / "handwritten.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]  # type: ignore[misc]


def _generate(split: str, stream: str, seed: int) -> Iterator[Sentence]:
    rng = random.Random(seed * 1_000 + _STREAMS[stream])
    seen: set[str] = set()
    while True:
        made = sentence(rng)
        if split_of(made) == split and made.de not in seen:
            seen.add(made.de)
            yield made


def _words(rows: Iterable[tuple[str, str]]) -> set[str]:
    return {word.strip(".,?!").lower() for row in rows for text in row for word in text.split()}


@functools.lru_cache(maxsize=8)
def _pairs(split: str, size: int, seed: int) -> tuple[tuple[str, str], ...]:
    made = ((s.de, s.en) for s in _generate(split, split, seed))
    if split != "train":
        known = _words(_pairs("train", SIZES["train"], seed))
        made = (row for row in made if _words([row]) <= known)
    rows = list(itertools.islice(made, size))
    if split == "train":
        rows = rows[: size - len(handwritten())] + handwritten()
        random.Random(seed).shuffle(rows)
    return tuple(rows)


def pairs(split: str = "train", limit: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """(German, English) pairs of a split; the same for the same seed. `limit` takes the first of them."""
    if split not in SIZES:
        raise DataError("unknown split of the embedded corpus", got=split, expected=", ".join(SIZES))
    return list(_pairs(split, SIZES[split], seed)[:limit])


def monolingual(lang: str, limit: int | None = None, seed: int = 0) -> Iterator[str]:
    """Training-side sentences of one language, drawn apart from the pairs and from the other language, as asked for."""
    if lang not in ("de", "en"):
        raise DataError("unknown language of the embedded corpus", got=lang, expected="de, en")
    by_hand = (pair[lang == "en"] for pair in handwritten())
    made = (getattr(one, lang) for one in _generate("train", lang, seed))
    return itertools.islice(itertools.chain(by_hand, made), limit or MONOLINGUAL)


def denoising(lang: str, limit: int | None = None, seed: int = 0) -> Iterator[str]:
    """Monolingual sentences, each behind a noisy form of itself."""
    rng = random.Random(seed * 1_000 + _STREAMS["noise"])
    return (with_noise(text, lang, rng) for text in monolingual(lang, limit, seed))


def held_out_text(limit: int = 200) -> list[str]:
    """Sentences of both languages that no training text contains, alternating."""
    rows = [s for s, _ in zip(_generate("dev", "dev", 1), range(limit))]
    return [s.de if i % 2 else s.en for i, s in enumerate(rows)]
