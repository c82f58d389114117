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


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from.

    Args:
        queries (b, d), positives (b, d), negatives (b, m, d): embeddings; m may be 0.
        query_keys (b,), positive_keys (b,), negative_keys (b, m): equal texts have equal keys.
        scores (b,): graded similarity from 0 to 1, where the rows have one.
    """

    queries: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    query_keys: torch.Tensor
    positive_keys: torch.Tensor
    negative_keys: torch.Tensor
    scores: torch.Tensor


def info_nce(
    batch: Batch, *, temperature: float = 0.02, in_batch: bool = True, margin: float | None = None
) -> torch.Tensor:
    """Mean over queries of −log softmax of the positive's similarity / temperature.

    A candidate that is the same text as the query or its positive is left out. With `margin`, so is one whose
    similarity exceeds margin × the positive's: it is probably right as well.
    """
    q, p, n = batch.queries, batch.positives, batch.negatives
    rows = len(q)
    if in_batch:
        documents = torch.cat([p, n.flatten(0, 1)])
        keys = torch.cat([batch.positive_keys, batch.negative_keys.flatten()])[None, :]
        similarity = q @ documents.T
        right = torch.arange(rows, device=q.device)
    else:
        own = torch.cat([p[:, None], n], dim=1)
        keys = torch.cat([batch.positive_keys[:, None], batch.negative_keys], dim=1)
        similarity = torch.einsum("bd,bcd->bc", q, own)
        right = torch.zeros(rows, dtype=torch.long, device=q.device)
    places = F.one_hot(right, similarity.shape[1]).bool()
    same = (keys == batch.positive_keys[:, None]) | (keys == batch.query_keys[:, None])
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
