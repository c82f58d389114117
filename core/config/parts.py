"""The typed options of what a recipe lays on a model, edits and adapters, and its trackers: checked without torch."""

from __future__ import annotations

import importlib.util
from typing import Any

from core.config.registry import ADAPTERS, EDITS, QUANTIZERS, TRACKERS, Part, Registry
from core.config.schema import AdapterConfig, ModelConfig, TrainConfig
from core.config.typed import Places, build
from core.errors import BackendUnavailable, ConfigError, nearest

LORA_KEYS = ("r", "alpha", "dropout", "rslora", "dora")


def check_parts(model: ModelConfig, places: Places, path: tuple, packing: bool = False) -> None:
    """Adapters, edits and the number format are registered, and given only options that these have.

    Args:
        packing: whether rows will share sequences.
    """
    check_quantization(model, places, path)
    for number, edit in enumerate(model.edits):
        edit_options(edit, places, (*path, "edits", number))
    for number, adapter in enumerate(model.adapters):
        adapter_options(adapter, places, (*path, "adapters", number))
        if packing and not ADAPTERS.get(adapter.kind).packs:
            raise ConfigError(
                f"under a {adapter.kind} adapter rows that share a sequence would see each other",
                where=places.of((*path, "adapters", number)),
                hint="set data.packing: false",
            )


def check_base(model: ModelConfig, places: Places) -> None:
    """A base is one folder or id, or one preset with a tokenizer."""
    if model.path and model.preset:
        raise ConfigError("give either model.path or model.preset, not both", where=places.of(("model", "preset")))
    if not model.path and not model.preset:
        raise ConfigError(
            "no model", where=places.of(("model",)), hint="set model.path (folder, hub id or embedded) or model.preset"
        )
    if model.preset and not model.tokenizer:
        raise ConfigError(
            "a preset has no tokenizer of its own",
            where=places.of(("model", "preset")),
            hint="set model.tokenizer, e.g. bpe:8192",
        )


def check_weighed(model: ModelConfig, train: TrainConfig, places: Places, path: tuple) -> None:
    """Keys that shape the cross-entropy need one: an edit with a loss of its own may give it no weight."""
    shapes = next((name for name in ("label_smoothing", "z_loss") if getattr(train, name)), None)
    for number, edit in enumerate(model.edits if shapes else ()):
        if getattr(edit_options(edit), "ce", None) == 0:
            raise ConfigError(
                f"{edit['kind']} gives the cross-entropy no weight, and train.{shapes} shapes nothing else",
                where=places.of((*path, "edits", number, "ce")),
                hint=f"give ce a weight, or take train.{shapes} out",
            )


def check_quantization(model: ModelConfig, places: Places, path: tuple) -> None:
    """The number format is known and its library is here; weights in it are frozen, so something else has to train.

    A preset that is made by training is the other way round: it leaves nothing to adapters.
    """
    if model.quantization == "none":
        return
    where = places.of((*path, "quantization"))
    try:
        quantizer = QUANTIZERS.get(model.quantization.partition(":")[0])
    except ConfigError as error:
        raise ConfigError(error.what, where=where, hint=f"{error.hint}, none") from None
    if quantizer.missing:
        raise BackendUnavailable(
            f"quantization '{model.quantization}' needs {quantizer.package}", where=where, hint=quantizer.missing
        )
    try:
        spec = quantizer.parsed(model.quantization)
    except ConfigError as error:
        raise ConfigError(error.what, where=where, hint=error.hint) from None
    learns = any(adapter.path is None for adapter in model.adapters) or any(
        edit.get("kind") in EDITS and EDITS.get(edit["kind"]).trains and edit.get("train") != "all"
        for edit in model.edits
    )
    if spec and spec.trained and learns:
        raise ConfigError(
            f"preset '{spec.preset}' trains the weights themselves, and adapters or edits would freeze them",
            where=where,
            hint="train without them and compress the run; an adapter can then be trained on the packed model",
        )
    if not (spec and spec.trained) and not learns:
        raise ConfigError(
            "quantized weights are frozen, and no adapter trains",
            where=where,
            hint="add model.adapters: [{kind: lora, r: 16}], or take quantization out",
        )


def edit_options(edit: dict[str, Any], places: Places | None = None, path: tuple = ("model", "edits")) -> Any:
    """The typed options of `{kind: …, its keys}`. Raises `ConfigError` for an unknown kind or key."""
    places = places or Places()
    part = _part(EDITS, str(edit.get("kind", "")), places, path)
    return build(part.options_cls, {name: value for name, value in edit.items() if name != "kind"}, places, path)


def adapter_options(adapter: AdapterConfig, places: Places | None = None, path: tuple = ("model", "adapters")) -> Any:
    """The typed options under `with:`. Raises `ConfigError` for an unknown kind or key, or a key of another kind."""
    places = places or Places()
    part = _part(ADAPTERS, adapter.kind, places, path)
    if adapter.kind != "lora":
        default = AdapterConfig()
        for name in LORA_KEYS:
            if getattr(adapter, name) != getattr(default, name):
                raise ConfigError(
                    f"'{name}' here is a key of lora, the adapter is {adapter.kind}",
                    where=places.of((*path, name)),
                    hint=f"write with: {{{name}: …}}",
                )
    return build(part.options_cls, adapter.with_, places, (*path, "with"))


def _part(registry: Registry[Part], kind: str, places: Places, path: tuple) -> Part:
    try:
        return registry.get(kind)
    except ConfigError as error:
        raise ConfigError(error.what, where=places.of((*path, "kind")), hint=error.hint) from None


def check_trackers(names: list[str], places: Places) -> None:
    """Every tracker is known and its package is here."""
    for number, name in enumerate(names):
        where = places.of(("trackers", number))
        if name not in TRACKERS:
            hint = " ".join(filter(None, [nearest(name, TRACKERS), f"known: {', '.join(TRACKERS)}"]))
            raise ConfigError(f"unknown tracker '{name}'", where=where, hint=hint)
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            packages = " or ".join(TRACKERS[name])
            raise BackendUnavailable(
                f"the tracker '{name}' is not installed",
                where=where,
                hint=f"pip install {TRACKERS[name][-1]}"
                if len(TRACKERS[name]) == 1
                else f"install {packages}, e.g. pip install 'graft[trackers]'",
            )
