"""Two kinds of text for questions of forgetting: what the small bases were trained on, and what they never saw.

A (known): the WMT sentences, German and English, that are part of what the bases learnt from, and held-out ones. B
(new): Verilog of two benchmarks with its test benches, HLS C++, and Indonesian with seven regional languages of
Indonesia, cut by problem, design or given split. `sizes` says how much there is of each.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.bar import Unavailable
from benchmarks.data import data_root

HELD_OUT = 10  # every tenth problem or design
LANGUAGES = (
    "acehnese", "balinese", "banjarese", "indonesian", "javanese", "madurese", "minangkabau", "sundanese"
)  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """Documents to train on, and documents that are kept apart."""

    train: list[str]
    held_out: list[str]

    def sizes(self) -> dict[str, int]:
        return {"train_bytes": _bytes(self.train), "held_out_bytes": _bytes(self.held_out)}


def _bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


@cache
def known() -> Domain:
    """A: text that the bases were trained on, and held-out text of its kind, in documents of 20 sentences."""
    texts, train = [], []
    for side in ("de", "en"):
        lines = _read(f"translation/wmt_human_written/deen/train.de-en.{side}").splitlines()
        train += ["\n".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]
    for name in ("valid.de-en.json", "test.de-en.json", "test.en-de.json"):
        rows = json.loads(_read(f"translation/wmt_human_written/deen/{name}"))
        for side in ("de", "en"):
            lines = [row["translation"][side] for row in rows]
            texts += ["\n".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]
    return Domain(train, texts)


@cache
def new(part: str = "all") -> Domain:
    """B: code and regional languages. `part` is all, code or languages."""
    train: list[str] = []
    held: list[str] = []
    if part in ("all", "code"):
        documents = [
            *([f"{row['ref']}\n{row['test']}" for row in _rows("rtl/verilog_eval_v2/problems.jsonl")]),
            *([f"{row['verified']}\n{row['testbench']}" for row in _rows("rtl/rtllm_v2/designs.jsonl")]),
            *(["\n".join(row["sources"].values()) for row in _rows("rtl/chrysalis_hls/bugs.jsonl")]),
        ]
        held += documents[::HELD_OUT]
        train += [text for number, text in enumerate(documents) if number % HELD_OUT]
    if part in ("all", "languages"):
        for split, texts in (("train", train), ("test", held)):
            rows = list(csv.DictReader(_read(f"low_resource/nusax/mt/{split}.csv").splitlines()))
            rows = rows if split == "train" else rows[:100]
            texts += [
                "\n".join(row[language] for row in rows[start : start + 20])
                for language in LANGUAGES
                for start in range(0, len(rows), 20)
            ]
    return Domain(train, held)


def text(part: str) -> Domain:
    """The text to train on: `known`, or a part of the new."""
    return known() if part == "known" else new(part)


def _read(name: str) -> str:
    path = data_root() / name
    if not path.is_file():
        raise Unavailable(f"no data: {path} is missing")
    return path.read_text(encoding="utf-8")


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _read(name).splitlines() if line.strip()]


def model_path(name: str = "small-22m") -> str:
    """A small pretrained base beside the data. Raises `Unavailable` where it is absent."""
    for folder in (data_root().parent / "models" / name, data_root() / "models" / name):
        if (folder / "config.json").is_file():
            return str(folder)
    raise Unavailable(f"no model: {data_root().parent / 'models' / name} is missing")


def blocks(texts: list[str], tokenizer: Any, size: int, limit: int | None = None) -> list[list[int]]:
    """The documents, each with its end of text, joined and cut into blocks of `size` ids."""
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    cut = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    return cut[:limit]
