"""Quantize a model in memory: one walk over its layers, block by block where data decides.

The driver finds the layers, refuses what cannot work before any of it is done, lets the preset's transforms rewrite a
block, lets its solver find codes, swaps the layer and keeps one row of figures for each. Methods' own mathematics is in
`transforms` and `solvers`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core.errors import ConfigError, DataError, UnsupportedError, nearest
from core.models.linear import dense_weight, is_linear_like
from core.quantization.linear import QuantizedLinear, checked
from core.quantization.spec import QuantSpec, parse


@dataclass
class LayerRow:
    """What happened to one layer: relative weight error, relative output error on calibration data, what was chosen.

    `bits` are those of all that decodes one of its `weights` entries.
    """

    name: str
    spec: str
    bits: float
    weights: int
    weight_error: float
    output_error: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class QuantReport:
    """Rows of all layers and the totals that an app shows."""

    spec: str
    rows: list[LayerRow] = field(default_factory=list)
    seconds: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a quantized weight, all overheads in."""
        return sum(row.bits * row.weights for row in self.rows) / max(1, sum(row.weights for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "spec": self.spec,
            "layers": [vars(row) for row in self.rows],
            "bits_per_weight": round(self.bits_per_weight, 4),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": round(self.seconds, 2),
            **self.notes,
        }


@dataclass
class Stats:
    """What a solver may look at for one layer; absent ones are None.

    Args:
        hessian: Σ xᵀx over tokens, fp32 (K, K). absmax, absmean: (K,). sample: rows of inputs (T, K).
        fisher: squared gradients (N, K). clip: shares of each group's range to keep, (N, G) or a pair.
        levels: (k,) that were learned.
    """

    hessian: Any = None
    absmax: Any = None
    absmean: Any = None
    sample: Any = None
    fisher: Any = None
    clip: Any = None
    levels: Any = None


def quantize_model(
    model: Any,
    spec: str | QuantSpec,
    calib: Iterable[torch.Tensor] | None = None,
    *,
    skip: Sequence[str] = (),
    overrides: dict[str, str | QuantSpec] | None = None,
    seed: int = 0,
    **options: Any,
) -> QuantReport:
    """Quantize the linear maps of `model` in place.

    Args:
        calib: batches of token ids (B, T), for presets that need data.
        skip: parts of layer names that stay dense; the head and what is tied to the embedding always do.
        overrides: part of a name → another spec, e.g. {"down_proj": "rtn:8"}; for presets that need no data.
        options: settings of the preset's own search (see `core.quantization.blocks`).

    Raises:
        ConfigError: calibration missing, a group that does not divide, a setting that the search does not have, a
            preset that is made by training.
        DataError: calibration that is empty, not finite or out of the vocabulary.
        UnsupportedError: a layer that is quantized already, or of a dtype that cannot be.
    """
    spec = parse(spec)
    start = time.perf_counter()
    if spec.trained:
        raise ConfigError(
            f"preset '{spec.preset}' is made by training", where="quantization",
            hint="core.quantization.trained.make_trainable(model, spec), then train, then pack",
        )  # fmt: skip
    check_settings(spec, options)
    targets = find_targets(model, skip)
    specs = {name: checked(module, _override(name, spec, overrides), name) for name, module in targets.items()}
    report = QuantReport(str(spec), bytes_before=_bytes(model))
    batches = None
    if spec.needs_calibration:
        batches = checked_batches(calib, model, spec)
    with torch.no_grad():
        if batches is None:
            for name, module in targets.items():
                report.rows.append(swap(model, name, module, specs[name]))
        else:
            from core.quantization.blocks import quantize_blocks

            quantize_blocks(model, spec, batches, specs, report, seed=seed, **options)
    report.seconds = time.perf_counter() - start
    report.bytes_after = _bytes(model)
    if hasattr(model, "config"):
        from core.quantization.hf import mark

        mark(model, spec, list(skip))
    return report


def swap(model: Any, name: str, module: Any, quant: QuantSpec, stats: Stats | None = None, **inputs: Any) -> LayerRow:
    """Solve one layer and put the quantized one in its place. `inputs`: `in_scale`, `perm`, `high_blocks`."""
    from core.quantization.solvers import solver_of

    weight = dense_weight(module).detach()
    inner = weight.float()
    if inputs.get("in_scale") is not None:
        inner = inner / inputs["in_scale"].to(inner)
    if inputs.get("perm") is not None:
        inner = inner[:, inputs["perm"]]
    encoded = solver_of(quant)(inner, quant, stats)
    made = QuantizedLinear.from_encoded(encoded, quant, getattr(module, "bias", None), **inputs)
    model.set_submodule(name, made)
    delta = made.dense_weight() - weight.float()
    row = row_of(name, made, weight_error=_share(delta, weight.float()), notes=encoded.notes)
    if stats is not None and stats.hessian is not None and made.perm is None and made.in_scale is None:
        row.output_error = _output_share(delta, weight.float(), stats.hessian)
    return row


def row_of(name: str, layer: QuantizedLinear, **found: Any) -> LayerRow:
    """The row of a quantized layer."""
    bits, weights = round(layer.bits_per_weight, 4), layer.in_features * layer.out_features
    return LayerRow(name, layer.spec, bits, weights, **found)


def check_settings(spec: QuantSpec, options: dict[str, Any]) -> None:
    """Refuse options that the preset's search does not have, and values that it cannot take."""
    from core.quantization.blocks import settings

    known = settings(spec)
    for name, value in options.items():
        if name not in known:
            hint = f"{nearest(name, known)} it has {', '.join(known)}" if known else "its search has none"
            raise ConfigError(
                f"preset '{spec.preset}' has no setting '{name}'", where="quantization", hint=hint.strip()
            )
        least = 1 if name == "search_batches" else 0
        if not isinstance(value, int | float) or value < least or (name == "alpha_step" and not 0 < value <= 1):
            raise ConfigError(f"setting '{name}' cannot be {value!r}", where="quantization", hint="a positive number")


def find_targets(model: Any, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Name → linear map of all that is to be quantized: not the head, not what is tied to the embedding, not `skip`.

    Raises:
        UnsupportedError: there is nothing left, or an adapter lies on the model.
    """
    if hasattr(model, "peft_config"):
        raise UnsupportedError("adapters lie on the model", hint="quantize the base, then add adapters")
    kept_out = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        part = getattr(model, getter, lambda: None)()
        if part is not None:
            kept_out |= {id(part), id(getattr(part, "weight", part))}
    found = {
        name: module
        for name, module in model.named_modules()
        if is_linear_like(module)
        and id(module) not in kept_out
        and id(getattr(module, "weight", module)) not in kept_out
        and not any(part in name for part in skip)
    }
    if not found:
        raise UnsupportedError("no linear map to quantize", hint="look at skip, or at what the model is made of")
    return found


def checked_batches(calib: Iterable[torch.Tensor] | None, model: Any, spec: QuantSpec) -> list[torch.Tensor]:
    """Calibration batches as a list of ids (B, T), on the model's device."""
    if calib is None:
        raise ConfigError(
            f"preset '{spec.preset}' needs calibration data", where="quantization",
            hint="quantize_model(model, spec, calib=[token ids (B, T), …]); in a recipe the training text is taken",
        )  # fmt: skip
    batches = [batch.unsqueeze(0) if batch.dim() == 1 else batch for batch in calib]
    batches = [batch for batch in batches if batch.numel()]
    if not batches:
        raise DataError("the calibration data is empty", hint="give at least one batch of token ids (B, T)")
    embed = model.get_input_embeddings()
    rows = embed.weight.shape[0]
    for number, batch in enumerate(batches):
        if batch.is_floating_point() or int(batch.min()) < 0 or int(batch.max()) >= rows:
            raise DataError(f"calibration batch {number} is not token ids of this model", got=batch.dtype,
                            expected=f"integers below {rows}")  # fmt: skip
    return [batch.to(embed.weight.device) for batch in batches]


def _override(name: str, spec: QuantSpec, overrides: dict[str, str | QuantSpec] | None) -> QuantSpec:
    for part, other in (overrides or {}).items():
        if part in name:
            return parse(other)
    return spec


def _bytes(model: Any) -> int:
    held = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.numel() * t.element_size() for t in held.values())


def _share(delta: torch.Tensor, weight: torch.Tensor) -> float:
    return round(float(delta.norm() / weight.norm().clamp_min(1e-12)), 6)


def _output_share(delta: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """‖X Δᵀ‖ / ‖X Wᵀ‖ from XᵀX."""
    hessian = hessian.to(delta)
    lost = ((delta @ hessian) * delta).sum()
    full = ((weight @ hessian) * weight).sum().clamp_min(1e-12)
    return round(float((lost.clamp_min(0) / full).sqrt()), 6)
