"""What a model reads of each language: shares of tokens, met by leaving out and by repeating.

The mixture decides what a small model learns (Yang et al. 2023, MindLLM; Wu et al. 2024, GEB-1.3B, on Chinese and
English). Shares are given, or follow from the sizes by a power below one, which lifts what is rare (Conneau et al.
2020). Repeating text up to about four times is nearly as good as new text (Muennighoff et al. 2023), so no language is
read more often than a limit, and the scarcest one against its share bounds the whole. Documents come out evenly
shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from apps.lm.data import TextExample
from core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """One language in a mixture.

    Args:
        documents, tokens: read in all, repetitions counted. epochs: how often its text is read.
        share: of the mixture's tokens; wanted: what was asked for. characters_per_token: how well the tokenizer
            serves it: a language with few pays more for the same text.
    """

    lang: str
    documents: int
    tokens: int
    epochs: float
    share: float
    wanted: float
    characters_per_token: float


@dataclass(frozen=True)
class Mixture:
    """The documents in the order in which they are read, and what each language has of them."""

    documents: list[TextExample]
    parts: list[Part]

    def table(self) -> str:
        """Lines for a person."""
        return "\n".join(
            f"  {p.lang:<6} {p.share:6.1%} of tokens (wanted {p.wanted:.1%})  {p.tokens:>12,} tokens"
            f"  {p.epochs:5.2f} epochs  {p.characters_per_token:.2f} characters a token"
            for p in self.parts
        )

    def to_dict(self) -> list[dict[str, Any]]:
        return [asdict(part) for part in self.parts]


def count_tokens(documents: Sequence[TextExample], tokenizer: Any, batch: int = 1000) -> list[int]:
    """Tokens of each document, its end of text included."""
    sizes: list[int] = []
    for start in range(0, len(documents), batch):
        texts = [document.text for document in documents[start : start + batch]]
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        sizes += [len(row) + 1 for row in ids]
    return sizes


def wanted_shares(tokens: dict[str, int], shares: dict[str, float], alpha: float | None) -> dict[str, float]:
    """The share of each language: as given, else its tokens to the power `alpha`, else as the data are.

    Raises:
        DataError: a language has a share and no text, or text and no share.
        ConfigError: both ways are given, or no share is above 0.
    """
    if shares and alpha is not None:
        raise ConfigError("give shares or alpha, not both", where="with.shares")
    if not shares:
        shares = {lang: size ** (1.0 if alpha is None else alpha) for lang, size in tokens.items()}
    for lang in sorted(set(shares) ^ set(tokens)):
        what = "no text" if lang in shares else "text and no share"
        raise DataError(
            f"language '{lang}' has {what}",
            field="shares",
            got=shares,
            expected=f"the languages {', '.join(sorted(tokens))}",
            hint="a source says its language by with: {lang: de}",
        )
    if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise ConfigError("shares are numbers from 0 on, one of them above 0", where="with.shares")
    total = sum(shares.values())
    return {lang: shares[lang] / total for lang in sorted(shares)}


def mix(
    documents: Sequence[TextExample],
    sizes: Sequence[int],
    *,
    shares: dict[str, float] | None = None,
    alpha: float | None = None,
    max_epochs: float = 4.0,
    seed: int = 0,
) -> Mixture:
    """The largest mixture with these shares in which nothing is left out that need not be.

    The language with most text for its share is read once; the others are repeated until they have their share, but at
    most `max_epochs` times, and where that is not enough the whole mixture becomes smaller.

    Args:
        sizes: tokens of each document. seed: of the choice among documents that are read once more, and of the order.
    """
    groups: dict[str, list[int]] = {}
    for number, document in enumerate(documents):
        groups.setdefault(document.lang, []).append(number)
    tokens = {lang: sum(sizes[i] for i in rows) for lang, rows in groups.items()}
    wanted = wanted_shares(tokens, shares or {}, alpha)
    asked = {lang: tokens[lang] / share for lang, share in wanted.items() if share > 0}
    total = min(max(asked.values()), max_epochs * min(asked.values()))
    random_ = random.Random(seed)
    chosen: list[int] = []
    parts = []
    for lang, share in wanted.items():
        taken = _fill(groups[lang], sizes, share * total, random_)
        chosen += taken
        length = sum(sizes[i] for i in taken)
        characters = sum(len(documents[i].text) for i in groups[lang])
        parts.append((lang, len(taken), length, length / tokens[lang], share, characters / tokens[lang]))
    random_.shuffle(chosen)
    read = sum(part[2] for part in parts)
    return Mixture(
        [documents[i] for i in chosen],
        [Part(a, n, size, epochs, size / read, share, per) for a, n, size, epochs, share, per in parts],
    )


def _fill(rows: Sequence[int], sizes: Sequence[int], budget: float, random_: random.Random) -> list[int]:
    """Rows, again and again in a new order, until their tokens come closest to `budget`."""
    whole = sum(sizes[i] for i in rows)
    copies = int(budget / whole + 1e-9)
    taken = [i for _ in range(copies) for i in rows]
    left = budget - copies * whole
    for i in random_.sample(rows, len(rows)):
        if sizes[i] <= 2 * left:
            taken.append(i)
            left -= sizes[i]
        if left <= 0:
            break
    return taken
