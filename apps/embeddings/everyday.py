"""Everyday questions with their answers, written by hand for this project, so that the app works with nothing else.

48 answers in nine topics; two questions of each are for training, a third one is held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.embeddings.example import EmbeddingExample

TASK = "Given a question, retrieve the answer"


@dataclass(frozen=True)
class Entry:
    """An answer of a topic with its three questions."""

    topic: str
    answer: str
    first: str
    second: str
    held_out: str


def entries() -> list[Entry]:
    """All answers, in the order of the file."""
    lines = Path(__file__).with_name("everyday.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [Entry(*line.split("\t")) for line in lines]


def triplets(task: str = "") -> Iterator[EmbeddingExample]:
    """Training questions with their answer and, as negatives, the other answers of the topic."""
    found = entries()
    for entry in found:
        others = tuple(e.answer for e in found if e.topic == entry.topic and e is not entry)
        for question in (entry.first, entry.second):
            yield EmbeddingExample(question, pos=(entry.answer,), neg=others, task=task or TASK)


def collection(task: str = "") -> Iterator[EmbeddingExample]:
    """Each answer as a document, followed by its held-out question."""
    for number, entry in enumerate(entries()):
        yield EmbeddingExample(entry.answer, id=f"a{number}")
        yield EmbeddingExample(entry.held_out, relevant=((f"a{number}", 1.0),), id=f"q{number}", task=task or TASK)


def pairs(task: str = "", split: str | None = None) -> Iterator[EmbeddingExample]:
    """Questions of one answer (1), of one topic (0.4) and of different topics (0).

    Held-out splits pair a question of training with a held-out one.
    """
    found, second = entries(), "second" if split in (None, "train") else "held_out"
    for number, entry in enumerate(found):
        near, far = found[number - 1], found[(number + len(found) // 2) % len(found)]
        for other, score in ((entry, 1.0), (near, 0.4 if near.topic == entry.topic else 0.0), (far, 0.0)):
            yield EmbeddingExample(entry.first, text2=getattr(other, second), score=score, task=task)


def topics(task: str = "", split: str | None = None) -> Iterator[EmbeddingExample]:
    """Questions with their topic: those of training, the held-out ones, or all."""
    kinds = {None: ("first", "second", "held_out"), "train": ("first", "second")}
    for question in kinds.get(split, ("held_out",)):
        for entry in entries():
            yield EmbeddingExample(getattr(entry, question), label=entry.topic, task=task)
