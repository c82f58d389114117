"""Where an output ends: stop strings, found in text and held back in streams.

A stop string may begin in the middle of a token and end in another, so it is looked for in text.
Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins in `text`."""
    return min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many last characters may be the beginning of a stop string and must not be given out yet."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0


def ids_until_stop(ids: list[int], stops: Sequence[str], decode: Any) -> list[int]:
    """The shortest beginning of `ids` whose text holds a stop string (there must be one)."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if find_stop(decode(ids[:middle]), stops) is None:
            low = middle + 1
        else:
            high = middle
    return ids[:low]


def stop_window(stops: Sequence[str]) -> int:
    """How many last tokens can hold a stop string: one a byte, and some to spare for tokens without text."""
    return max(len(stop.encode()) for stop in stops) + 8


def completing_tokens(stops: Sequence[str], tokenizer: Any) -> frozenset[int] | None:
    """The ids that can complete a stop string, or None when that cannot be told from one token.

    A token completes a stop string only if its text holds the string's last character, or a part of its bytes, which
    decodes to U+FFFD. Spaces are the exception: some tokenizers drop a space that opens a text.
    """
    lasts = {stop[-1] for stop in stops}
    if any(last.isspace() and last != "\n" for last in lasts):
        return None
    texts = tokenizer.batch_decode(
        [[i] for i in range(len(tokenizer))], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return frozenset(i for i, text in enumerate(texts) if "\ufffd" in text or any(last in text for last in lasts))


class StopStrings:
    """A stopping criterion of `generate`: True for rows (B, T) whose last token completes a stop string.

    Only the last tokens of rows that may have ended are decoded, and never the prompt: decoding every row at every
    step costs a twentieth of a beam search with a small model.

    Args:
        completing: what `completing_tokens` gives; None decodes every row.
    """

    def __init__(
        self, stops: Sequence[str], prompt_length: int, tokenizer: Any, completing: frozenset[int] | None = None
    ) -> None:
        self.stops, self.prompt_length, self.tokenizer, self.completing = stops, prompt_length, tokenizer, completing
        self.window = stop_window(stops)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        last = input_ids[:, -1].tolist()
        rows = [row for row, i in enumerate(last) if self.completing is None or i in self.completing]
        if not rows:
            return ended
        tail = input_ids[rows, max(self.prompt_length, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(tail.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for row, text in zip(rows, texts):
            ended[row] = find_stop(text, self.stops) is not None
        return ended
