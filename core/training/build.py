"""Compose the model of a stage: base, then structural edits, then its number format, then adapters."""

from __future__ import annotations

from typing import Any

from core.config.parts import adapter_options, edit_options
from core.config.registry import ADAPTERS, EDITS, BuildContext
from core.config.schema import AdapterConfig, ModelConfig
from core.errors import CheckpointError, UnsupportedError


def build_base(config: ModelConfig, tokenizer: Any, *, device: str, seed: int = 0, texts: Any = ()) -> Any:
    """The model that training starts from: the base as loaded, with `config.edits` applied in order.

    Args:
        texts: training text, for edits and number formats that calibrate.
    """
    from core.quantization.load import load_base

    edit = (lambda model: apply_edits(model, config.edits, seed, tokenizer, texts)) if config.edits else None
    return load_base(config, tokenizer, device=device, seed=seed, edit=edit, texts=texts)


def apply_edits(model: Any, edits: list[dict], seed: int = 0, tokenizer: Any = None, texts: Any = ()) -> Any:
    """`model` after each edit `{kind: …, its keys}` in order; an edit that fails leaves it as it was before."""
    for edit in edits:
        context = BuildContext(seed, tokenizer, texts)
        model = EDITS.get(edit.get("kind", "")).builder(model, edit_options(edit), context)
    return model


def add_adapters(model: Any, adapters: list[AdapterConfig], seed: int = 0) -> Any:
    """`model` with its adapters; unchanged when the list is empty.

    A model that says so (`with_adapters`) lets them be laid on a part of it.

    Args:
        seed: of the random weights, equal for equal seeds; the caller's random state is left as it was.

    Raises:
        ConfigError: targets that no module matches, with the closest module names.
    """
    if hasattr(model, "with_adapters"):
        return model.with_adapters(lambda part: add_adapters(part, adapters, seed))
    trained = [spec for spec in adapters if spec.path is None]
    if len(trained) > 1:
        raise UnsupportedError(
            f"{len(trained)} adapters would train at once",
            where="model.adapters",
            hint="train one of them and give the others a path",
        )
    if adapters and not trained:
        raise UnsupportedError(
            "every adapter is frozen, and under adapters the base is too",
            where="model.adapters",
            hint="add an adapter without a path",
        )
    frozen: list[str] = []
    for spec in adapters:
        options = adapter_options(spec)
        if spec.path is None:
            model = ADAPTERS.get(spec.kind).builder(model, spec, options, BuildContext(seed))
        else:
            frozen.append(f"below{len(frozen)}")
            model = _frozen(model, spec.path, frozen[-1])
    if frozen:
        from core.adapters.stacking import stack

        stack(model, [*frozen, "default"])
    return model


def _frozen(model: Any, path: str, name: str) -> Any:
    from core.adapters.stacking import attach_frozen
    from core.models.load import resolve_path

    try:
        return attach_frozen(model, resolve_path(path), name)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the adapter cannot be laid on this base: {str(error).splitlines()[0][:200]}", where=path
        ) from error


def training_hooks(model_config: ModelConfig, model: Any, trainer_cls: type) -> tuple[type, list[Any]]:
    """The Trainer class with what edits and adapters add to a training step, and their callbacks."""
    callbacks: list[Any] = []
    parts = [(EDITS.get(edit["kind"]), edit_options(edit)) for edit in model_config.edits]
    parts += [(ADAPTERS.get(spec.kind), adapter_options(spec)) for spec in model_config.adapters if spec.path is None]
    for part, options in parts:
        if part.trainer_hook is not None:
            trainer_cls, added = part.trainer_hook(trainer_cls, model, options)
            callbacks += added
    return trainer_cls, callbacks


def merged_in_memory(model: Any) -> Any:
    """The plain model with its adapters folded in; a model without adapters as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def parameter_counts(model: Any) -> dict[str, int]:
    """All parameters and those that train; tied weights count once."""
    total = sum(p.numel() for p in model.parameters())
    return {"parameters": total, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
