"""Losses over the embeddings of a whole batch, and their arithmetic alone: no model, no process.

`info_nce` is contrastive (van den Oord et al. 2018). With `in_batch` every document of the batch is a candidate of
every query (Karpukhin et al. 2020); without it a query sees only its own positive and negatives, which is right where
texts of one class would be each other's false negatives. `cosent` orders pairs by graded similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from core.errors import ConfigError

AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from.

    Args:
        queries (b, d), positives (b, d), negatives (b, m, d): embeddings; m may be 0.
        query_keys (b,), positive_keys (b,), negative_keys (b, m): equal texts have equal keys.
        scores (b,): graded similarity from 0 to 1, where the rows have one.
        right (b, b, 1 + m): whether document j of row k answers query i (0 the positive, then the negatives); None
            where no more is known than that rows of equal queries have equal answers.
    """

    queries: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    query_keys: torch.Tensor
    positive_keys: torch.Tensor
    negative_keys: torch.Tensor
    scores: torch.Tensor
    right: torch.Tensor | None = None


def known_right(answers: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(a, b, 1 + m): whether the text of each key is among a query's answers.

    Args:
        answers (a, r): keys of what is right for each query; a shorter row repeats one of its own. keys (b, 1 + m).
    """
    flat, found = keys.flatten(), []
    for part in answers.sort(dim=1).values.split(max(1, AT_ONCE // flat.numel())):
        asked = flat.expand(len(part), -1).contiguous()
        place = torch.searchsorted(part, asked).clamp(max=part.shape[1] - 1)
        found.append(part.gather(1, place) == asked)
    return torch.cat(found).unflatten(1, keys.shape)


def _right_of_equal_queries(batch: Batch) -> torch.Tensor:
    """(b, b, 1 + m): documents that are the positive of a row with the same query, or the query itself."""
    query, positive = batch.query_keys, batch.positive_keys
    shared = torch.where(query[:, None] == query[None, :], positive[None, :], positive[:, None])
    keys = torch.cat([positive[:, None], batch.negative_keys], dim=1)
    return known_right(torch.cat([shared, query[:, None]], dim=1), keys)


def info_nce(
    batch: Batch, *, temperature: float = 0.02, in_batch: bool = True, margin: float | None = None
) -> torch.Tensor:
    """Mean over queries of −log softmax of the positive's similarity / temperature.

    A candidate that is the query's own text, or right for it in another row, is left out. With `margin`, so is one
    whose similarity exceeds margin × the positive's: it is probably right as well.
    """
    q, p, n = batch.queries, batch.positives, batch.negatives
    rows = torch.arange(len(q), device=q.device)
    known = _right_of_equal_queries(batch) if batch.right is None else batch.right
    if in_batch:
        similarity = q @ torch.cat([p, n.flatten(0, 1)]).T
        same = torch.cat([known[:, :, 0], known[:, :, 1:].flatten(1)], dim=1)
        right = rows
    else:
        similarity = torch.einsum("bd,bcd->bc", q, torch.cat([p[:, None], n], dim=1))
        same = known[rows, rows]
        right = torch.zeros_like(rows)
    places = F.one_hot(right, similarity.shape[1]).bool()
    if margin is not None:
        reached = similarity.detach().gather(1, right[:, None])
        same = same | (similarity.detach() > reached - (1 - margin) * reached.abs())
    logits = (similarity / temperature).masked_fill(same & ~places, float("-inf"))
    return F.cross_entropy(logits, right)


def cosent(batch: Batch, *, temperature: float = 0.05) -> torch.Tensor:
    """log(1 + Σ exp((s_i − s_j) / temperature)) over the pairs i, j of rows of which j is the more similar one."""
    similarity = F.cosine_similarity(batch.queries, batch.positives) / temperature
    wrong = similarity[:, None] - similarity[None, :]
    ordered = batch.scores[:, None] < batch.scores[None, :]
    found = wrong.masked_fill(~ordered, float("-inf")).flatten()
    return torch.logsumexp(F.pad(found, (0, 1)), dim=0)


def nested(batch: Batch, *, objective: Callable[[Batch], torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
    """The mean of `objective` on the whole embeddings and on their leading `sizes` (Kusupati et al. 2022, Matryoshka).

    Cut embeddings are scaled to unit length again.

    Raises:
        ConfigError: a size that the embeddings do not have.
    """
    width = batch.queries.shape[-1]
    if strange := [size for size in sizes if not 1 <= size <= width]:
        raise ConfigError(f"embeddings of {width} dimensions have no leading {strange}", where="with.matryoshka")
    losses = [objective(batch)]
    for size in sizes:
        q, p, n = (F.normalize(part[..., :size], dim=-1) for part in (batch.queries, batch.positives, batch.negatives))
        losses.append(objective(replace(batch, queries=q, positives=p, negatives=n)))
    return torch.stack(losses).mean()
