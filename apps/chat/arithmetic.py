"""Questions whose answers can be checked, made by the project: for tests, demos, and as rewards that are exact.

Sums, differences, the larger of two numbers, and words turned round, each asked in a few ways. The splits share no
question. `is_right` reads a number or word out of an answer, so it also serves as a reward.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable

WORDS = "apple bread cloud dream eagle field grape house island jacket kettle lemon music night ocean piano".split()
SIZES = {"train": 2000, "dev": 100, "test": 200}
SHARE = {0: "test", 1: "dev"}

Question = tuple[str, str, str]


def _sum(rng: random.Random) -> Question:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    ask = rng.choice(["What is {} plus {}?", "Add {} and {}.", "How much is {} + {}?"])
    return ask.format(a, b), f"{a} plus {b} is {a + b}.", f"{a} plus {b} is {a + b + rng.choice([-10, -1, 1, 10])}."


def _difference(rng: random.Random) -> Question:
    a, b = sorted((rng.randint(2, 99), rng.randint(2, 99)), reverse=True)
    ask = rng.choice(["What is {} minus {}?", "Take {1} away from {0}.", "How much is {} - {}?"])
    return ask.format(a, b), f"{a} minus {b} is {a - b}.", f"{a} minus {b} is {a - b + rng.choice([-10, -1, 1, 10])}."


def _larger(rng: random.Random) -> Question:
    a, b = rng.sample(range(2, 100), 2)
    ask = rng.choice(["Which is larger, {} or {}?", "Name the larger number: {} or {}."])
    return ask.format(a, b), f"{max(a, b)} is larger.", f"{min(a, b)} is larger."


def _reverse(rng: random.Random) -> Question:
    word = rng.choice(WORDS)
    turned = list(word)
    while "".join(turned) in (word, word[::-1]):
        rng.shuffle(turned)
    ask = rng.choice(["Spell {} backwards.", "Turn the word {} round.", "Write {} from back to front."])
    return ask.format(word), f"{word[::-1]}", "".join(turned)


KINDS: list[Callable[[random.Random], Question]] = [_sum, _difference, _larger, _reverse]


def questions(split: str = "train", seed: int = 0) -> list[Question]:
    """(question, right answer, wrong answer), the same for the same seed; no question is in two splits."""
    from core.errors import DataError

    if split not in SIZES:
        raise DataError("unknown split of the shipped questions", got=split, expected=", ".join(SIZES))
    rng = random.Random(seed * 1000 + zlib.crc32(split.encode()))
    made: dict[str, Question] = {}
    while len(made) < SIZES[split]:
        question = rng.choice(KINDS[:3] if split != "train" else KINDS)(rng)
        if SHARE.get(zlib.crc32(question[0].encode()) % 12, "train") == split:
            made.setdefault(question[0], question)
    return list(made.values())


def last_item(text: str) -> str:
    """What an answer comes down to: its last number (or its first, before "is larger"), else its letters."""
    numbers = re.findall(r"-?\d+", text)
    if numbers:
        return numbers[0] if "larger" in text else numbers[-1]
    return "".join(re.findall(r"[a-z]+", text.lower()))


def is_right(answer: str, example: object) -> float:
    """1 for an answer that comes down to the same as the example's, else 0: a reward."""
    known = getattr(example, "answer", None) or ""
    return float(bool(answer.strip()) and last_item(answer) == last_item(known))
