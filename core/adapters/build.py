"""Our adapters as a recipe asks for them: `(model, AdapterConfig, options, BuildContext) -> model`."""

from __future__ import annotations

import dataclasses
from typing import Any

from core.adapters.attach import attach
from core.adapters.bottleneck import BottleneckConfig
from core.adapters.presets import adapter_preset
from core.adapters.seq_bottleneck import SeqBottleneckConfig
from core.config.registry import BuildContext
from core.config.schema import AdapterConfig
from core.errors import UnsupportedError
from core.models.topology import ROLES, ModelTopology


def bottleneck(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """A bottleneck with every option of its own; by default at gate, up and down."""
    config = BottleneckConfig(**dataclasses.asdict(options), target_modules=named_targets(model, spec))
    return _attach(model, spec, config, context)


def series(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """The published series placement: before gate and up."""
    return _preset("series", model, spec, options.r, context)


def series_after_mlp(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """The paper's best series placement: behind down."""
    return _preset("series_after_mlp", model, spec, options.r, context)


def parallel(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """The published parallel placement: beside up and down."""
    return _preset("parallel", model, spec, options.r, context)


def prefix(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """Virtual tokens before every sequence, through peft."""
    return attach(model, adapter_preset("prefix", model, options.tokens), context.seed)


def seq_bottleneck(model: Any, spec: AdapterConfig, options: Any, context: BuildContext) -> Any:
    """A bottleneck behind every block."""
    return _attach(model, spec, SeqBottleneckConfig(**dataclasses.asdict(options)), context)


def no_recomputation(trainer_cls: type, model: Any, options: Any) -> tuple[type, list[Any]]:
    """The Trainer of prefixes, which refuses activation checkpointing: recomputation would silently drop the prefix."""

    class PrefixTrainer(trainer_cls):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.args.gradient_checkpointing:
                raise UnsupportedError(
                    "the keys and values of a prefix are lost when activations are recomputed",
                    where="backend.activation_checkpoint",
                    hint="set it to none, or take another adapter",
                )

    return PrefixTrainer, []


def named_targets(model: Any, spec: AdapterConfig) -> list[str] | None:
    """Full names for roles such as "q" or "down", other names as they are; None leaves the placement to the method."""
    if spec.targets == "all-linear":
        return None
    given = [spec.targets] if isinstance(spec.targets, str) else list(spec.targets)
    roles = [name for name in given if name in ROLES]
    return [name for name in given if name not in roles] + (ModelTopology.of(model).targets(*roles) if roles else [])


def _preset(name: str, model: Any, spec: AdapterConfig, r: int, context: BuildContext) -> Any:
    config = adapter_preset(name, model, r)
    if (targets := named_targets(model, spec)) is not None:
        config.target_modules = set(targets)
    return _attach(model, spec, config, context)


def _attach(model: Any, spec: AdapterConfig, config: Any, context: BuildContext) -> Any:
    config.modules_to_save = spec.modules_to_save or None
    return attach(model, config, context.seed)
