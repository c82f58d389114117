"""How probable a text is to a masked language model: each token hidden in turn, the others seen (Salazar et al. 2020).

The sum over a text of log p(token | all others) is its pseudo-log-likelihood. Every hidden token is a row of its own;
rows of all texts go through the model together, many at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any


def is_masked(model: Any) -> bool:
    """Whether the model fills in hidden tokens instead of continuing text."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "ForMaskedLM" in type(bare).__name__


def mask_id(tokenizer: Any) -> int:
    """The id that hides a token; a tokenizer without a mask token hides with its padding, which no text holds."""
    return tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id


def pseudo_log_likelihoods(
    model: Any, tokenizer: Any, texts: Sequence[str], *, batch: int = 64, max_length: int | None = None
) -> list[tuple[float, int]]:
    """Sum of log p(token | others) in nats and number of tokens, for every text; special tokens are not counted.

    Args:
        max_length: a longer text is read in pieces of that many tokens, by default of the model's positions.
    """
    import torch

    device = next(model.parameters()).device
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    size = (max_length or min(getattr(model.config, "max_position_embeddings", 512), 512)) - 2
    rows = list(_rows(tokenizer, texts, size))
    # rows of like length share a batch
    rows.sort(key=lambda row: len(row[1]))
    training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            longest = max(len(ids) for _, ids, _ in part)
            filled = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for _, ids, _ in part]
            seen = [[1] * len(ids) + [0] * (longest - len(ids)) for _, ids, _ in part]
            ids, mask = (torch.tensor(rows_, device=device) for rows_ in (filled, seen))
            at = torch.tensor([place for _, _, place in part], device=device)
            line = torch.arange(len(part), device=device)
            wanted = ids[line, at]
            ids[line, at] = mask_id(tokenizer)
            logits = model(input_ids=ids, attention_mask=mask).logits[line, at].float()
            found = logits.log_softmax(-1)[line, wanted].tolist()
            for (number, _, _), value in zip(part, found):
                sums[number] += value
                counts[number] += 1
    model.train(training)
    return list(zip(sums, counts))


def pseudo_perplexity(model: Any, tokenizer: Any, texts: Sequence[str], **options: Any) -> float:
    """exp of the mean negative log p(token | others) over all tokens of `texts`."""
    found = pseudo_log_likelihoods(model, tokenizer, texts, **options)
    return math.exp(-sum(total for total, _ in found) / max(1, sum(count for _, count in found)))


def _rows(tokenizer: Any, texts: Sequence[str], size: int) -> Iterator[tuple[int, list[int], int]]:
    """(text, ids with special tokens, position) for every token of every piece of every text."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    before, after = [[i] if i is not None else [] for i in (first, last)]
    for number, text in enumerate(texts):
        plain = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(plain), size):
            piece = plain[start : start + size]
            for place in range(len(piece)):
                yield number, [*before, *piece, *after], len(before) + place
