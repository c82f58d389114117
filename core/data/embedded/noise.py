"""Sentences with noise before the sentence itself, for denoising: a monolingual task in the form of translation.

Words are dropped, doubled, and moved a little (Lample et al. 2018, "Unsupervised machine translation using monolingual
corpora only"), and the model writes the sentence as it was (Liu et al. 2020, "Multilingual denoising pre-training for
neural machine translation", mBART). A base that has learnt this looks back at a source while it writes.
"""

from __future__ import annotations

import random

DROPPED, DOUBLED, REACH = 0.1, 0.05, 3


def noisy(text: str, rng: random.Random) -> str:
    """`text` with words dropped and doubled, and none moved further than `REACH` places; never empty."""
    words = text.split()
    kept = [word for word in words if rng.random() >= DROPPED] or words[:1]
    kept = [copy for word in kept for copy in [word] * (1 + (rng.random() < DOUBLED))]
    order = sorted(range(len(kept)), key=lambda i: i + rng.random() * REACH)
    return " ".join(kept[i] for i in order)


def with_noise(text: str, lang: str, rng: random.Random) -> str:
    """A document: the noisy sentence, and on the next line the sentence, each behind its language code."""
    return f"[{lang}] {noisy(text, rng)}\n[{lang}] {text}"
