"""Batches of similar length under a token budget, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence


def length_buckets(lengths: Sequence[int], max_tokens: int, max_size: int) -> list[list[int]]:
    """Indices in batches, longest first (so that memory trouble shows at once), each at most `max_size` rows.

    A batch's padded size, rows × longest, stays within `max_tokens`; a row longer than that is alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        current = batches[-1] if batches else None
        if current is None or len(current) >= max_size or lengths[current[0]] * (len(current) + 1) > max_tokens:
            batches.append([index])
        else:
            current.append(index)
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the padded batches that is padding."""
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return 1 - sum(lengths[i] for b in batches for i in b) / padded if padded else 0.0
