"""Low-rank weights where the spectrum allows it (Jaiswal et al. 2024, WeLore): what is compressed is what trains.

Singular values of each matrix are scaled to 0 … 1; one threshold for the whole model, found by bisection, says how many
are dropped where. Matrices that lose more than half of their rank become two factors and train, the others stay as they
are and are frozen. No data is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.config.registry import BuildContext
from core.config.sparse import WeLoreOptions
from core.errors import CheckpointError, ConfigError, UnsupportedError
from core.models.linear import dense_weight, features
from core.models.linear_form import LowRankLinear
from core.models.surgery import forget, ops_of, replace_linear
from core.models.topology import ModelTopology
from core.objectives.partly import PartlyQuantized
from core.sparse.masks import prunable
from core.statistics.allocate import threshold_bisect
from core.statistics.importance import Pattern

KEEP_EVERY = 16  # matrices between two writings of the cache


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


def spectra(model: Any, cache: str | Path | None = None) -> dict[str, torch.Tensor]:
    """Singular values, fp32 on the host, of every linear map of the blocks.

    Args:
        cache: a safetensors file that keeps them. What it holds of these weights (their squares add up to ‖W‖²) is not
            computed again, so that an interrupted computation goes on where it was.

    Raises:
        UnsupportedError: quantized weights. CheckpointError: weights that are not finite, a cache that is no such file.
    """
    topology, place = ModelTopology.of(model), None if cache is None else Path(cache)
    named = prunable(model, topology, Pattern(0.5))
    known = _read(place)
    found, fresh = dict[str, torch.Tensor](), 0
    for path, part in named.items():
        weight = dense_weight(part).detach().float()
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError("weights that are not finite", where=path, hint="the base is damaged; load another")
        if not _belongs(known.get(path), weight):
            known[path], fresh = torch.linalg.svdvals(weight).cpu(), fresh + 1
        found[path] = known[path]
        if place is not None and fresh and (len(found) == len(named) or not fresh % KEEP_EVERY):
            _write(place, known)
    return found


def _belongs(values: torch.Tensor | None, weight: torch.Tensor) -> bool:
    """Whether these can be the singular values of W."""
    if values is None or len(values) != min(weight.shape):
        return False
    return bool(torch.isclose(values.square().sum(), weight.square().sum().cpu(), rtol=1e-4))


def _read(place: Path | None) -> dict[str, torch.Tensor]:
    if place is None or not place.is_file():
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place)
    except SafetensorError as error:
        raise CheckpointError("not a file of singular values", where=str(place), hint="name another cache") from error


def _write(place: Path, found: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, place.with_suffix(".tmp"))
    place.with_suffix(".tmp").replace(place)


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


def to_dense(model: Any) -> Any:
    """Multiply all factors out, in place: the model has ordinary maps again, of the same function. Returns the model.

    Raises:
        UnsupportedError: other edits that were made after the factors.
    """
    ops = ops_of(model)
    first = next((number for number, op in enumerate(ops) if op.get("form") == "lowrank"), len(ops))
    later = sorted({op["kind"] for op in ops[first:]} - {"linear_form"})
    if later:
        raise UnsupportedError(f"the factors were edited afterwards: {', '.join(later)}", where="to_dense")
    for path in [op["path"] for op in ops if op.get("form") == "lowrank"]:
        part = model.get_submodule(path)
        weight, bias = part.dense_weight().detach(), part.bias
        inside, outside = features(part)
        plain = torch.nn.Linear(inside, outside, bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            plain.weight.copy_(weight)
            if bias is not None:
                plain.bias.copy_(bias)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)
    forget(model, [op for op in ops if op.get("form") == "lowrank"])
    return model


def build(model: Any, options: WeLoreOptions, context: BuildContext) -> Any:
    """`welore` as an edit of a recipe."""
    report = welore(model, options, spectra(model, options.cache) if options.cache else None)
    if not report.lowrank:
        warnings.warn(
            "no map lost enough ranks to become factors, so the model stays as it was and everything trains; raise "
            "err, or take lrc_rule: breakeven",
            stacklevel=2,
        )
    return model


def hook(trainer_cls: type, model: Any, options: WeLoreOptions) -> tuple[type, list[Any]]:
    """The Trainer of a stage that trains the factors; the maps that stay may be quantized."""
    return type(f"WeLore{trainer_cls.__name__}", (PartlyQuantized, trainer_cls), {}), []
