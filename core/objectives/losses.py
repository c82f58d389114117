"""Losses of next tokens as a sum and a count, by name.

A loss that is a mean cannot be accumulated: micro-batches and ranks with few trained tokens would weigh as much as
those with many. Here every loss gives the sum over its tokens and their number, and whoever makes a step divides once.
Every loss in `LOSSES` is proven, under its name, to give the same gradients however a batch is cut, packed, recomputed
or spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from core.config.registry import Registry
from core.objectives.head import PlainHead, caught_states, head_module, plain_head, understood
from core.objectives.linear_cross_entropy import linear_cross_entropy

IGNORE = -100
PIECE = 4096
Loss = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def token_loss(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> torch.Tensor:
    """Summed cross-entropy of next tokens in fp32; labels are shifted here, `IGNORE` carries no loss.

    Legend: B batch, T time, V vocabulary.
    """
    logits = logits_BTV[:, :-1].flatten(0, 1)
    targets = labels_BT[:, 1:].flatten()
    kept = targets != IGNORE
    return summed_loss(logits[kept].float(), targets[kept], smoothing, z_loss)


def summed_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor, smoothing: float, z_loss: float) -> torch.Tensor:
    """Cross-entropy of N tokens, and z_loss · log² Z of each: fp32."""
    total = F.cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=smoothing)
    return total + z_loss * logits_NV.logsumexp(-1).square().sum() if z_loss else total


def places_of(labels_BT: torch.Tensor) -> torch.Tensor:
    """Flat positions (N,) of a batch whose next token carries loss. On a GPU, asking makes the host wait."""
    kept = torch.zeros_like(labels_BT, dtype=torch.bool)
    kept[:, :-1] = labels_BT[:, 1:] != IGNORE
    return kept.flatten().nonzero()[:, 0]


@dataclass
class CrossEntropy:
    """Cross-entropy of a causal model called on a batch: `(model, inputs, labels) -> (sum, count)`.

    Args:
        form: whole makes all logits; fused never does (`linear_cross_entropy`; a head that is no dense matrix is
            called piece by piece and called again in the backward pass).
        smoothing: share of the target's mass spread over the vocabulary.
        z_loss: weight of log² Z, which keeps the softmax's normaliser Z near one (Chowdhery et al. 2022, PaLM).
    """

    form: Literal["fused", "whole"] = "fused"
    smoothing: float = 0.0
    z_loss: float = 0.0
    _plain: bool | None = field(default=None, repr=False)

    def __call__(
        self, model: Any, inputs: dict[str, Any], labels: torch.Tensor, places: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            inputs: what the model is called with, besides no cache. labels: (B, T), `IGNORE` where there is no loss.
            places: `places_of(labels)`, where the caller has made it already.
        """
        if self.form == "whole" or head_module(model) is None:
            logits = model(**inputs, use_cache=False).logits
            return token_loss(logits, labels, self.smoothing, self.z_loss), (labels[:, 1:] != IGNORE).sum()
        with caught_states(model) as caught:
            logits = model(**inputs, use_cache=False).logits
        places = places_of(labels) if places is None else places
        targets = labels.flatten()[places + 1]
        states = caught.states.flatten(0, 1)
        states = states if len(places) == len(states) else states[places]
        count = torch.tensor(len(places), device=labels.device)
        head = plain_head(model, self.smoothing, self.z_loss)
        if self._plain is None:
            self._plain = head is not None and understood(head, caught.states, logits)
        with caught.autocast:
            if self._plain and head is not None:
                return linear_cross_entropy(states, head.weight, targets, head.bias, head.shape), count
            return self._by_module(model, head, states, targets), count

    def _by_module(self, model: Any, head: PlainHead | None, states: torch.Tensor, targets: torch.Tensor) -> Any:
        """The head's own forward, piece by piece, made again in the backward pass."""
        module, shape = head_module(model), None if head is None else head.shape
        total = states.sum() * 0.0 if not len(targets) else states.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), PIECE):
            part = slice(start, start + PIECE)
            total = total + checkpoint(self._piece, module, shape, states[part], targets[part], use_reentrant=False)
        return total

    def _piece(self, module: Any, shape: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = module(states).float()
        logits = logits if shape is None else shape.of(logits)
        return summed_loss(logits, targets, self.smoothing, self.z_loss)


LOSSES: Registry[Callable[..., Loss]] = Registry("loss")


@LOSSES.register("cross_entropy")
def _cross_entropy(**options: Any) -> Loss:
    return CrossEntropy("fused", **options)


@LOSSES.register("cross_entropy.whole")
def _whole(**options: Any) -> Loss:
    return CrossEntropy("whole", **options)


@LOSSES.register("cross_entropy.smoothed")
def _smoothed(**options: Any) -> Loss:
    return CrossEntropy("fused", **{"smoothing": 0.1, **options})


@LOSSES.register("cross_entropy.z_loss")
def _z_loss(**options: Any) -> Loss:
    return CrossEntropy("fused", **{"z_loss": 0.05, **options})


@LOSSES.register("cross_entropy.whole_z_loss")
def _whole_z_loss(**options: Any) -> Loss:
    return CrossEntropy("whole", **{"z_loss": 0.05, **options})


@LOSSES.register("distillation")
def _distillation(teacher: Any = None, **options: Any) -> Loss:
    """Cross-entropy and divergence from a teacher; without one the adapters are switched off to make it."""
    from core.objectives.distill import DistillLoss, distillation

    loss = DistillLoss(**{"ce": 0.5, "kl": 0.5, "temperature": 2.0, **options})

    def call(model: Any, inputs: dict[str, Any], labels: torch.Tensor, places: Any = None) -> Any:
        terms = distillation(loss, model, teacher, inputs, labels)
        return loss.ce * terms["ce"] + loss.kl * terms["kl"], terms["count"]

    return call


@LOSSES.register("distillation.whole")
def _whole_distillation(**options: Any) -> Loss:
    return _distillation(**{"form": "whole", **options})
