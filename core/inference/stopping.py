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


class StopStrings:
    """A stopping criterion of `generate`: True for rows (B, T) whose new text ends in or holds a stop string.

    Only the last tokens are decoded, and never the prompt.
    """

    def __init__(self, stops: Sequence[str], prompt_length: int, tokenizer: Any) -> None:
        self.stops, self.prompt_length, self.tokenizer = stops, prompt_length, tokenizer
        self.window = stop_window(stops)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        tail = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(tail.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ended = [find_stop(text, self.stops) is not None for text in texts]
        return torch.tensor(ended, device=input_ids.device)
