"""Training with a moving support: when SpIEL looks, what it replaces, and with which optimizer.

Every `reselection_steps`, and first of all at the start, a window opens in which the layers watch their gradients; when
it closes, the smallest values make room for the candidates with the largest summed gradient, whose moments start as if
they had been there during the window (SpIEL-AG). SpIEL-MA needs no window: the optimizer's accumulators give the
scores. The Trainer is any transformers Trainer; a resumed run selects as an uninterrupted one does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from core.errors import ConfigError, UnsupportedError
from core.objectives.selection import SelectionCallback, replacement_rate, unwrapped
from core.sparse.spiel import SpielConfig, SpielLayer, spiel_layers
from core.sparse.spiel_optim import SpielAdamW, SpielSM3
from core.sparse.support import replacement, top_outer
from core.sparse.window import Window


class SpielCallback(SelectionCallback):
    """Moves the support of one adapter of a model.

    Args:
        config: of the adapter. adapter: its name.

    Attributes:
        replaced: share of the entries that the last reselection exchanged. scale: what the optimizer's gradient of this
            step is of the one that the backward passes made, not finite for a step that is left out. blind: training
            began with a support that nobody chose; that of an adapter with values is never exchanged as a whole.
    """

    name = "spiel"

    def __init__(self, config: SpielConfig, adapter: str = "default") -> None:
        steps = config.accumulation_steps
        # the first support is drawn blindly, so it is exchanged as soon as something is known; ma needs no window
        window, first = (0, steps) if config.selection == "ma" else (steps, 0)
        super().__init__(config.reselection_steps, window, first=first)
        self.config, self.adapter = config, adapter
        self.replaced, self.scale, self.blind = 0.0, 1.0, True
        self._layers: dict[str, SpielLayer] = {}

    # ---- when ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.take_layers(unwrapped(given["model"]))
        self.blind = not any(bool(layer.spiel_values[self.adapter].any()) for layer in self._layers.values())
        super().on_train_begin(args, state, control, **given)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.end_step()
        super().on_step_end(args, state, control, **given)

    def ended(self) -> bool:
        kept = self.selections > 0 or not self.blind
        return self.config.selection == "random" or (self.config.selection == "grad_once" and kept)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for layer in self._layers.values():
            layer.windows.pop(self.adapter, None)

    # ---- what ------------------------------------------------------------------------------------------------------

    def take_layers(self, model: Any) -> None:
        """Find the layers of `model` that hold the adapter."""
        found = spiel_layers(model)
        self._layers = {name: layer for name, layer in found.items() if self.adapter in layer.spiel_values}

    def end_step(self) -> None:
        """Count the gradients of an optimizer step in every open window."""
        for layer in self._layers.values():
            if self.adapter in layer.windows:
                layer.windows[self.adapter].end_step(self.scale)

    def watching(self) -> bool:
        """Whether a window is open."""
        return any(self.adapter in layer.windows for layer in self._layers.values())

    def open(self, model: Any, step: int, total: int) -> None:
        """Let every layer watch as many candidates as it has entries."""
        if self.config.selection == "ma":
            return
        for layer in self._layers.values():
            positions = layer.spiel_indices[self.adapter]
            layer.windows[self.adapter] = Window(len(positions), positions.dtype)

    @torch.no_grad()
    def close(self, model: Any, optimizer: Any, step: int, total: int) -> None:
        """Exchange entries in every layer."""
        rate = replacement_rate(self.config.rate_policy, self.config.initial_rate, step, total)
        rate = 1.0 if self.blind and not self.selections else rate
        moved = whole = 0
        for layer in self._layers.values():
            window = layer.windows.pop(self.adapter, None)
            if self.config.selection == "ma":
                moved += self._by_accumulators(layer, optimizer, rate)
            elif window is not None and window.steps:
                moved += self._by_gradients(layer, window, optimizer, rate)
            whole += len(layer.spiel_indices[self.adapter])
        self.replaced = moved / max(whole, 1)

    def _by_gradients(self, layer: SpielLayer, window: Window, optimizer: Any, rate: float) -> int:
        values, positions = layer.spiel_values[self.adapter], layer.spiel_indices[self.adapter]
        candidates = window.positions
        assert candidates is not None
        slots, grown = replacement(positions, values.abs(), candidates, window.total.abs(), rate)
        order = self._exchange(layer, slots, candidates[grown])
        if isinstance(optimizer, SpielAdamW):
            mean, square = window.total[grown] / window.steps, window.squares[grown] / window.steps
            optimizer.replace(values, slots, mean, square, float(window.steps), order)
        return len(slots)

    def _by_accumulators(self, layer: SpielLayer, optimizer: Any, rate: float) -> int:
        values, positions = layer.spiel_values[self.adapter], layer.spiel_indices[self.adapter]
        if not isinstance(optimizer, SpielSM3) or (found := optimizer.accumulators(values)) is None:
            return 0
        count = int(rate * len(positions) + 1e-9)
        best = top_outer(*found, count, positions) if count else positions[:0]
        slots = values.abs().argsort(stable=True)[: len(best)]
        self._exchange(layer, slots, best)
        return len(slots)

    def _exchange(self, layer: SpielLayer, slots: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Put positions into slots with value 0 and sort again. Returns the order, old slot of each new one."""
        values, positions = layer.spiel_values[self.adapter], layer.spiel_indices[self.adapter]
        changed = positions.clone()
        changed[slots] = new.to(positions.dtype)
        values[slots] = 0
        order = changed.argsort()
        positions.copy_(changed[order])
        values.copy_(values[order])
        return order

    # ---- resume ----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{kind}": tensor
            for name, layer in self._layers.items()
            if self.adapter in layer.windows
            for kind, tensor in layer.windows[self.adapter].tensors().items()
        }

    def load_tensors(self, found: dict[str, torch.Tensor]) -> None:
        for name, layer in self._layers.items():
            mine = {key.rpartition("/")[2]: t for key, t in found.items() if key.rpartition("/")[0] == name}
            if mine:
                positions = layer.spiel_indices[self.adapter]
                window = Window(len(positions), positions.dtype)
                window.load(mine, positions.device)
                layer.windows[self.adapter] = window

    def plain(self) -> dict[str, Any]:
        return {"replaced": self.replaced, "blind": self.blind}

    def load_plain(self, found: dict[str, Any]) -> None:
        self.replaced, self.blind = found["replaced"], found.get("blind", True)
        if self.opened is not None:
            self.open(None, self.opened, 0)


class SpielTrainerMixin:
    """A Trainer whose model has one SpIEL adapter: its optimizer, and a callback that moves the support.

    Raises:
        ConfigError: a model without the adapter.
        UnsupportedError: parameters in bf16, or an optimizer that has no state for each entry.
    """

    def __init__(self: Any, model: Any = None, *args: Any, **kwargs: Any) -> None:
        found = [config for config in getattr(model, "peft_config", {}).values() if isinstance(config, SpielConfig)]
        if not found:
            raise ConfigError("the model has no SpIEL adapter", hint="get_peft_model(model, SpielConfig(…)) first")
        precision = getattr(kwargs.get("backend"), "precision", None)
        if getattr(precision, "params", None) == "bf16":
            raise UnsupportedError(
                "SpIEL keeps its values in fp32", where="backend.precision.params", hint="the base may be in bf16"
            )
        self.spiel = found[-1]
        given = (kwargs.get("optimizers") or (None, None))[0]
        if given is not None and self.spiel.selection in ("ag", "ma"):
            needed = SpielAdamW if self.spiel.selection == "ag" else SpielSM3
            if not isinstance(given, needed):
                raise UnsupportedError(
                    f"{type(given).__name__} does not keep what a moving support needs", hint=f"use {needed.__name__}"
                )
        indices = [name for name, _ in model.named_buffers() if "spiel_indices" in name]
        # every process makes the same selection; broadcasting the indices in each step would be for nothing
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, indices)
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]
        if not any(isinstance(c, SpielCallback) for c in self.callback_handler.callbacks):
            self.add_callback(SpielCallback(self.spiel, self._adapter()))

    def _adapter(self: Any) -> str:
        return next(name for name, config in self.model.peft_config.items() if config is self.spiel)

    def _get_grad_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The norm before clipping; what clipping and loss scaling did to the values holds for the window, too."""
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        moved = next(c for c in self.callback_handler.callbacks if isinstance(c, SpielCallback))
        if moved.watching():
            most, scaler = self.args.max_grad_norm, getattr(self.accelerator, "scaler", None)
            kept = min(1.0, most / (float(norm) + 1e-6)) if most > 0 else 1.0
            finite = math.isfinite(float(norm))
            moved.scale = kept / (scaler.get_scale() if scaler is not None else 1.0) if finite else math.nan
        return norm

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            self.optimizer = spiel_optimizer(self.model, self.spiel, self._adapter(), self.args)
        return self.optimizer

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        moved = next((c for c in self.callback_handler.callbacks if isinstance(c, SpielCallback)), None)
        if "loss" in logs and moved is not None and moved.selections:
            logs = {**logs, "spiel/replaced": round(moved.replaced, 4)}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def spiel_optimizer(model: Any, config: SpielConfig, adapter: str, args: Any) -> Any:
    """SpielAdamW, or SpielSM3 for `ma`, over everything that trains, with a Trainer's arguments."""
    layers = {layer.spiel_values[adapter]: (layer, adapter) for layer in spiel_layers(model).values()}
    sparse = [parameter for parameter in layers if parameter.requires_grad]
    known = {id(parameter) for parameter in layers}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    if config.selection == "ma":
        return SpielSM3([*sparse, *others], layers, args.learning_rate, weight_decay=args.weight_decay)
    groups: list[dict[str, Any]] = [{"params": sparse}]
    groups += [{"params": others, "per_entry": False}] if others else []
    betas = (args.adam_beta1, args.adam_beta2)
    return SpielAdamW(groups, args.learning_rate, betas, weight_decay=args.weight_decay)


def hook(trainer_cls: type, model: Any, options: Any) -> tuple[type, list[Any]]:
    """The Trainer of a stage that trains a SpIEL adapter."""
    return type(f"Spiel{trainer_cls.__name__}", (SpielTrainerMixin, trainer_cls), {}), []


def replicated(model: Any) -> set[torch.nn.Parameter]:
    """The values of all SpIEL adapters, for `fully_shard(…, ignored_params=…)`: they stay whole on every process.

    Sharding then does not touch their gradients either, so these are averaged over the processes as they come. The
    base may be sharded: its weights are asked for when a layer runs, forward and backward, and are never kept.
    """
    found = {value for layer in spiel_layers(model).values() for value in layer.spiel_values.values()}
    for value in found:
        value.register_post_accumulate_grad_hook(_averaged)
    return found


def _averaged(parameter: torch.Tensor) -> None:
    if dist.is_initialized() and parameter.grad is not None:
        # the mean of what was averaged before stays what it is, so accumulation needs no special case
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
