"""Prune a model in one shot, then fine-tune it with the masks fixed, towards the dense model.

The masks come from magnitudes, from Wanda (Sun et al. 2024) or from SparseGPT (Frantar and Alistarh 2023), which also
moves the weights that stay so that the layer's outputs change least. Fine-tuning adds SquareHead, the distance of the
block outputs from the dense model's (Kurtic et al. 2023). A pruned map is a `MaskedLinear`: its dead weights are zero,
have no gradient and so no moment that could revive them.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from core.config.registry import BuildContext
from core.config.sparse import PruneOptions
from core.errors import ConfigError, DataError, UnsupportedError
from core.models.linear import dense_weight
from core.models.linear_form import MaskedLinear
from core.models.surgery import replace_linear
from core.models.topology import ModelTopology
from core.objectives.distill import DistillLoss, distilling
from core.statistics.calibration import BlockCalibration, token_batches
from core.statistics.importance import Pattern, magnitude, mask_of, wanda

METHODS = ("magnitude", "wanda", "sparsegpt")
BLOCK, DAMPING, VERY_SPARSE = 128, 0.01, 0.95

# the dense model that a pruned one learns from; beside the model, so that it is not saved with it
TEACHERS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def one_shot(model: Any, batches: Sequence[torch.Tensor], method: str = "sparsegpt", pattern: str = "0.5") -> Any:
    """Prune every linear map of the blocks, in place, block by block on calibration data. Returns the model.

    Args:
        batches: token ids (B, T); magnitude needs none.

    Raises:
        ConfigError: an unknown method, a pattern that a map's inputs do not divide into.
        UnsupportedError: quantized weights. DataError: no calibration data.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown way to prune '{method}'", hint=f"known: {', '.join(METHODS)}")
    wanted, topology = Pattern.parse(pattern), ModelTopology.of(model)
    named = prunable(model, topology, wanted)
    if wanted.sparsity > VERY_SPARSE:
        warnings.warn(
            f"{wanted.sparsity:.0%} of the weights will be zero; little of a model survives that", stacklevel=2
        )
    if method == "magnitude":
        for path, part in named.items():
            weight = dense_weight(part).detach()
            _put(model, path, part, weight, mask_of(magnitude(weight), wanted))
        return model
    if not batches:
        raise DataError(f"{method} measures the inputs of every layer", hint="give calibration text")
    for run in BlockCalibration(model, batches, streams="edited").blocks():
        mine = {path: part for path, part in run.linears().items() if path in named}
        statistics = run.collect(["hessian"], mine, stream="edited")
        for path, part in mine.items():
            hessian, weight = statistics[path].hessian, dense_weight(part, torch.float32).detach()
            if method == "wanda":
                mask = mask_of(wanda(weight, hessian.diagonal()), wanted, by_row=True)
                new = weight * mask
            else:
                new, mask = sparsegpt(weight, hessian, wanted)
            _put(model, path, part, new.to(dense_weight(part).dtype), mask)
    return model


def prunable(model: Any, topology: ModelTopology, pattern: Pattern) -> dict[str, Any]:
    """Every linear map of the blocks by name, after a look at whether the pattern suits it."""
    named = {topology.name_of(part): part for block in topology.blocks for part in block.linears().values()}
    for path, part in named.items():
        if not isinstance(getattr(part, "weight", None), torch.nn.Parameter) or not part.weight.is_floating_point():
            raise UnsupportedError("masks need the full weights", where=path, hint="prune before quantizing")
        pattern.fits(dense_weight(part).shape[1], path)
    return named


@torch.no_grad()
def sparsegpt(weight: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and its mask; weights to the right make up for each one that goes.

    Args:
        weight: (out, in) fp32. hessian: Σ x xᵀ (in, in).
    """
    weight, hessian = weight.clone(), hessian.float().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    weight[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    mask = torch.ones_like(weight, dtype=torch.bool)
    width = weight.shape[1]
    block = BLOCK - BLOCK % pattern.group if pattern.group else BLOCK
    block = max(block, pattern.group)
    for first in range(0, width, block):
        last = min(first + block, width)
        piece, errors = weight[:, first:last], torch.zeros_like(weight[:, first:last])
        corner = upper[first:last, first:last]
        if not pattern.group:
            mask[:, first:last] = mask_of(piece.square() / corner.diagonal().square(), pattern)
        for j in range(last - first):
            if pattern.group and j % pattern.group == 0:
                ahead = slice(j, j + pattern.group)
                scores = piece[:, ahead].square() / corner.diagonal()[ahead].square()
                mask[:, first + j : first + j + pattern.group] = mask_of(scores, pattern)
            kept = piece[:, j] * mask[:, first + j]
            errors[:, j] = (piece[:, j] - kept) / corner[j, j]
            piece[:, j:] -= errors[:, j, None] * corner[j, j:]
            piece[:, j] = kept
        weight[:, last:] -= errors @ upper[first:last, last:]
    return weight, mask


def _put(model: Any, path: str, part: Any, weight: torch.Tensor, mask: torch.Tensor) -> None:
    replace_linear(model, path, MaskedLinear.from_dense(weight, getattr(part, "bias", None), mask))


def sparsity(model: Any) -> float:
    """Share of zeros in the masked maps."""
    masks = [part.mask for part in model.modules() if isinstance(getattr(part, "mask", None), torch.Tensor)]
    return 1 - sum(float(mask.sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))


def build(model: Any, options: PruneOptions, context: BuildContext) -> Any:
    """`one_shot` as an edit of a recipe; the dense model is kept as teacher where the loss asks for one."""
    batches: Sequence[torch.Tensor] = ()
    if options.method != "magnitude" and context.tokenizer is not None and context.texts:
        batches = token_batches(context.tokenizer, context.texts, options.length, options.rows)
    teacher = copy.deepcopy(model) if options.kl or options.hidden else None
    model = one_shot(model, batches, options.method, options.pattern)
    if teacher is not None:
        TEACHERS[model] = teacher
    return model


def hook(trainer_cls: type, model: Any, options: PruneOptions) -> tuple[type, list[Any]]:
    """The Trainer of a stage on a pruned model."""
    loss = DistillLoss(options.ce, options.kl, options.hidden, options.temperature)
    return (distilling(trainer_cls, loss, TEACHERS[model]) if model in TEACHERS else trainer_cls), []
