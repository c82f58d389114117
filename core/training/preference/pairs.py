"""Rows with a better and a worse answer, as ids: one prompt, two ends.

The ids are those of `core.data.encode`, which also makes the prompt in serving, so a preference trainer compares the
answers behind exactly the prompt that the model will be given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.encode import Encoded, EncodeStats, encode
from core.data.segments import Segment, prompt_segments
from core.errors import DataError


@dataclass(frozen=True)
class Pair:
    """Two rows of segments that open with the same prompt; the learnt segments are the answers."""

    chosen: Sequence[Segment]
    rejected: Sequence[Segment]


@dataclass(frozen=True)
class EncodedPair:
    """Ids of the prompt and of both answers, each answer with its end of text."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    def __len__(self) -> int:
        """Tokens of both rows."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


def encode_pair(pair: Pair, tokenizer: Any, *, mode: str = "offsets", max_length: int | None = None) -> Any:
    """`EncodedPair`, or None when the longer answer does not fit; a prompt that is too long is cut for both alike.

    Raises:
        DataError: the two rows have different prompts, or equal answers.
    """
    if [s.text for s in prompt_segments(pair.chosen)] != [s.text for s in prompt_segments(pair.rejected)]:
        raise DataError("the better and the worse answer stand behind different prompts")
    whole = [encode(row, tokenizer, mode=mode) for row in (pair.chosen, pair.rejected)]  # type: ignore[arg-type]
    prompts, answers = zip(*map(_split, whole))
    if answers[0] == answers[1]:
        raise DataError("the better and the worse answer are the same", got=pair.chosen[-1].text)
    if not all(answers):
        return None
    longer = max((0, 1), key=lambda i: len(answers[i]))
    prompt = prompts[0]
    if max_length is not None and len(prompt) + len(answers[longer]) > max_length:
        row = (pair.chosen, pair.rejected)[longer]
        fitted = encode(row, tokenizer, mode=mode, max_length=max_length)  # type: ignore[arg-type]
        if fitted is None:
            return None
        prompt = _split(fitted)[0]
    return EncodedPair(prompt, *answers)


def _split(row: Encoded | None) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids)."""
    assert row is not None
    at = next((i for i, label in enumerate(row.labels) if label >= 0), len(row.labels))
    return row.input_ids[:at], row.input_ids[at:]


class PairDataset(Sequence):
    """Pairs in memory; an item is the dictionary that TRL's collators take."""

    bins = None
    padding_share = 0.0

    def __init__(self, rows: Sequence[EncodedPair]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> dict[str, list[int]]:  # type: ignore[override]
        row = self.rows[index]
        return {"prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids, "rejected_ids": row.rejected_ids}

    def to_datasets(self) -> Any:
        """The `datasets.Dataset` that TRL's constructors insist on."""
        from datasets import Dataset

        return Dataset.from_list([self[i] for i in range(len(self))])


def encode_pairs(
    pairs: Iterable[Pair], tokenizer: Any, *, mode: str = "offsets", max_length: int | None = None
) -> tuple[PairDataset, EncodeStats]:
    """Every pair encoded; those that do not fit are dropped and counted. Raises `DataError` when none is left."""
    stats, rows = EncodeStats(), []
    for number, pair in enumerate(pairs):
        try:
            row = encode_pair(pair, tokenizer, mode=mode, max_length=max_length)
        except DataError as error:
            raise DataError(f"pair {number + 1}: {error.what}", got=error.got) from error
        stats.rows += 1
        if row is None:
            stats.dropped += 1
            stats.worst[:] = [*stats.worst, number][:10]
            continue
        stats.tokens += len(row)
        stats.trained += len(row.chosen_ids) + len(row.rejected_ids)
        rows.append(row)
    stats.check()
    return PairDataset(rows), stats
