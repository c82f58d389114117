"""Which instructions a small model should learn: those it finds plausible, spread over all there are.

Few well chosen rows teach a small model more than many of any kind (Yang et al. 2023, MindLLM; Zhou et al. 2023, LIMA).
A row's quality is its place in the order of the base's own loss on the answer; its difference from the rows taken so
far is the distance of mean hidden states. Rows are taken one by one where quality × distance is greatest: greedy
k-centre (Gonzalez 1985; Sener and Savarese 2018), with the rows weighted. Nothing here knows of apps or prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from core.config.schema import ModelConfig
from core.data.collate import Collator
from core.data.encode import IGNORE, Encoded

BATCH_TOKENS = 8192


@torch.no_grad()
def look_at(model: Any, rows: Sequence[Encoded], pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What `model` makes of each row.

    Returns:
        mean loss of the learnt tokens (N,) in nats; mean last hidden state over the row, of length one (N, d).
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
    device = next(model.parameters()).device
    losses, states = torch.zeros(len(rows)), None
    training, collate, start = model.training, Collator(pad_id, packing=False), 0
    model.eval()
    try:
        while start < len(order):
            size = max(1, BATCH_TOKENS // max(1, len(rows[order[start]].input_ids)))
            part = order[start : start + size]
            batch = {name: value.to(device) for name, value in collate([rows[i] for i in part]).items()}
            labels, mask = batch["labels"][:, 1:], batch["attention_mask"]
            out = model(batch["input_ids"], attention_mask=mask, use_cache=False, output_hidden_states=True)
            each = F.cross_entropy(
                out.logits[:, :-1].float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORE
            )
            losses[part] = (each.sum(1) / (labels != IGNORE).sum(1).clamp(min=1)).cpu()
            last = out.hidden_states[-1].float()
            mean = (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            states = torch.zeros(len(rows), mean.shape[1]) if states is None else states
            states[part] = F.normalize(mean, dim=1).cpu()
            start += size
    finally:
        model.train(training)
    return losses, torch.zeros(0, 0) if states is None else states


def quality(losses: torch.Tensor, prefer: Literal["low", "high"] = "low") -> torch.Tensor:
    """Weights (N,) from 1 for the best to 1/N for the worst row, by the order of their loss."""
    order = losses.argsort(descending=prefer == "low", stable=True)
    weights = torch.empty(len(losses), dtype=torch.float64)
    weights[order] = torch.arange(1, len(losses) + 1, dtype=torch.float64) / len(losses)
    return weights


def k_centre(states: torch.Tensor, weights: torch.Tensor, count: int) -> list[int]:
    """Numbers of `count` rows in the order taken: first the heaviest, then where weight × distance is greatest.

    Args:
        states: (N, d). weights: (N,), not negative. Takes O(count · N · d) steps.
    """
    chosen = [int(weights.argmax())]
    away = torch.cdist(states.double(), states[chosen].double())[:, 0]
    while len(chosen) < min(count, len(weights)):
        score = weights * away
        score[chosen] = -1.0
        chosen.append(int(score.argmax()))
        away = torch.minimum(away, torch.cdist(states.double(), states[chosen[-1:]].double())[:, 0])
    return chosen


def choose(
    rows: Sequence[Encoded | None],
    model: ModelConfig,
    tokenizer: Any,
    *,
    share: float,
    prefer: Literal["low", "high"] = "low",
    device: str = "cpu",
    seed: int = 0,
) -> list[int]:
    """Numbers of the rows to learn, in order: `share` of those that fit, at least one.

    Args:
        rows: encoded; None for one that does not fit. model: the base as the recipe names it; its plain weights are
            read, looked with, and given back. prefer: rows of low loss, which the base finds plausible, or of high
            loss, which would change it most.
    """
    from core.models.load import load_model

    plain = dataclasses.replace(model, edits=[], adapters=[], quantization="none")
    fitting = [i for i, row in enumerate(rows) if row is not None and row.trained]
    if not fitting:
        return []
    base = load_model(plain, tokenizer, device=device, seed=seed)
    losses, states = look_at(base, [rows[i] for i in fitting], tokenizer.pad_token_id or 0)  # type: ignore[misc]
    taken = k_centre(states, quality(losses, prefer), max(1, round(share * len(fitting))))
    return sorted(fitting[i] for i in taken)
