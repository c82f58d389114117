"""Learning to fill in hidden tokens (Devlin et al. 2019), on the same trainer as everything else.

Of every step's tokens a share is chosen anew: 80 % of them are hidden, 10 % replaced by another token, 10 % kept, and
all of them are to be told. The random numbers are torch's own, which a checkpoint keeps, so a resumed run hides the
same tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from core.data.encode import IGNORE
from core.errors import ConfigError
from core.inference.pseudo import is_masked, mask_id
from core.training.trainer import SupervisedTrainer

HIDDEN, REPLACED = 0.8, 0.9


def corrupt(
    ids_BT: torch.Tensor, eligible_BT: torch.Tensor, share: float, hide_with: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with a share of the eligible tokens hidden, replaced or kept, and labels that name those alone.

    Args:
        ids_BT: (B, T). eligible_BT: (B, T), True where a token may be chosen.
    """
    chosen = eligible_BT & (torch.rand(ids_BT.shape, device=ids_BT.device) < share)
    labels = torch.where(chosen, ids_BT, IGNORE)
    lot = torch.rand(ids_BT.shape, device=ids_BT.device)
    other = torch.randint(vocabulary, ids_BT.shape, device=ids_BT.device)
    out = torch.where(chosen & (lot < HIDDEN), hide_with, ids_BT)
    return torch.where(chosen & (lot >= HIDDEN) & (lot < REPLACED), other, out), labels


class MaskedTrainer(SupervisedTrainer):
    """A Trainer of masked language models; `tokenizer` and `share` are set by `masked_trainer`."""

    tokenizer: Any
    share: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_masked(self.model):
            raise ConfigError(
                f"a {type(self.model).__name__} continues text and cannot fill in hidden tokens",
                where="method",
                hint="use an encoder, e.g. model.preset: bert-5m, or the method lm.pretrain",
            )
        special = [i for i in self.tokenizer.all_special_ids if i is not None]
        self.special = torch.tensor(special, device=self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # rows that all fill their length come without a mask
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        eligible = mask.bool() & ~torch.isin(ids, self.special)
        hidden, labels = corrupt(ids, eligible, self.share, mask_id(self.tokenizer), len(self.tokenizer))
        outputs = model(input_ids=hidden, attention_mask=mask)
        chosen = labels != IGNORE
        total = F.cross_entropy(outputs.logits[chosen].float(), labels[chosen], reduction="sum")
        if inputs.get("useful") is not None and model.training:
            self._useful = self._useful + inputs["useful"].sum()
        if num_items_in_batch is None:
            loss = total / chosen.sum().clamp(min=1)
        else:
            # the step's tokens times the share, so that a gradient does not depend on how the step was cut
            count = torch.as_tensor(num_items_in_batch, device=total.device) * self.share
            loss = total / count.clamp(min=1) * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def masked_trainer(tokenizer: Any, share: float = 0.15) -> type:
    """The Trainer class for a tokenizer."""
    return type("MaskedTrainer", (MaskedTrainer,), {"tokenizer": tokenizer, "share": share})
