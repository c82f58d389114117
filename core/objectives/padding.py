"""Which tokens of a batch are text, whether it has a mask or not."""

from __future__ import annotations

from typing import Any

import torch

from core.objectives.losses import IGNORE


def tokens_that_count(inputs: dict[str, Any], labels: torch.Tensor | None = None) -> torch.Tensor | None:
    """(B, T), 1 for tokens that are not padding. Packed rows have no mask; padding is what follows their last label.

    Args:
        labels: (B, T), where `inputs` hold none. None comes back where nothing tells padding.
    """
    if inputs.get("attention_mask") is not None:
        return inputs["attention_mask"]
    labels = inputs.get("labels") if labels is None else labels
    if labels is None:
        return None
    return ((labels != IGNORE).long().flip(1).cumsum(1).flip(1) > 0).long()
