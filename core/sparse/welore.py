"""Low-rank weights where the spectrum allows it (Jaiswal et al. 2024, WeLore): what is compressed is what trains.

Singular values of each matrix are scaled to 0 … 1; one threshold for the whole model, found by bisection, says how many
are dropped where. Matrices that lose more than half of their rank become two factors and train, the others stay as they
are and are frozen. No data is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.config.registry import BuildContext
from core.config.sparse import WeLoreOptions
from core.errors import ConfigError
from core.models.linear import dense_weight, features
from core.models.linear_form import LowRankLinear
from core.models.surgery import replace_linear
from core.models.topology import ModelTopology
from core.sparse.masks import prunable
from core.statistics.allocate import threshold_bisect
from core.statistics.importance import Pattern


@dataclass(frozen=True)
class WeLoreReport:
    """What became of a model.

    Args:
        threshold: on scaled singular values. ranks: kept rank of every map by name. lowrank: the maps that are two
            factors now. before, after: weights in all of the maps.
    """

    threshold: float
    ranks: dict[str, int]
    lowrank: list[str]
    before: int
    after: int


def spectra(model: Any) -> dict[str, torch.Tensor]:
    """Singular values, fp32 on the host, of every linear map of the blocks."""
    topology = ModelTopology.of(model)
    named = prunable(model, topology, Pattern(0.5))
    return {path: torch.linalg.svdvals(dense_weight(part).detach().float()).cpu() for path, part in named.items()}


def reduced_ranks(found: Mapping[str, torch.Tensor], err: float) -> tuple[float, dict[str, int]]:
    """The threshold at which `err` of all ranks go, and the rank that each matrix keeps.

    Raises:
        ConfigError: a share outside 0 … 1. BudgetError: one that no threshold reaches.
    """
    if not 0 < err < 1:
        raise ConfigError(f"an effective rank reduction of {err}", where="welore.err", hint="between 0 and 1")
    scaled = {}
    for path, values in found.items():
        spread = float(values.max() - values.min())
        if spread <= 1e-6 * float(values.max()):
            warnings.warn(f"all singular values of '{path}' are equal; it stays as it is", stacklevel=2)
            scaled[path] = torch.full_like(values, float("inf"))
        else:
            scaled[path] = (values - values.min()) / spread
    everything = torch.cat(list(scaled.values()))
    threshold = threshold_bisect(lambda k: float((everything < k).float().mean()), err, 0.0, 1.0)
    return threshold, {path: max(1, int((z >= threshold).sum())) for path, z in scaled.items()}


def is_lowrank(rank: int, outside: int, inside: int, rule: str) -> bool:
    """Whether a matrix becomes two factors: less than half of its rank is kept, or the factors are smaller than it."""
    if rule == "half":
        return rank < min(outside, inside) / 2
    return rank * (outside + inside) < outside * inside


def welore(
    model: Any, options: WeLoreOptions, found: Mapping[str, torch.Tensor] | None = None
) -> WeLoreReport:  # fmt: skip
    """Compress `model` in place and leave trainable what WeLore trains.

    Args:
        found: `spectra` of before, to save their computation.
    """
    topology = ModelTopology.of(model)
    named = prunable(model, topology, Pattern(0.5))
    threshold, ranks = reduced_ranks(spectra(model) if found is None else found, options.err)
    shapes = {path: features(part)[::-1] for path, part in named.items()}
    chosen = [path for path, rank in ranks.items() if is_lowrank(rank, *shapes[path], options.lrc_rule)]
    if options.train == "lowrank" and chosen:
        model.requires_grad_(False)
    for path in chosen:
        part = named[path]
        bias = getattr(part, "bias", None)
        form = LowRankLinear.from_dense(dense_weight(part).detach(), bias, rank=ranks[path])
        replace_linear(model, path, form.requires_grad_(True))
    before = sum(outside * inside for outside, inside in shapes.values())
    saved = sum(shapes[p][0] * shapes[p][1] - ranks[p] * sum(shapes[p]) for p in chosen)
    return WeLoreReport(threshold, ranks, chosen, before, before - saved)


def build(model: Any, options: WeLoreOptions, context: BuildContext) -> Any:
    """`welore` as an edit of a recipe."""
    welore(model, options)
    return model
