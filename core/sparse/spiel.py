"""Sparse fine-tuning whose support moves (Ansell et al. 2024, Scaling Sparse Fine-Tuning), as a tuner of peft.

Of a frozen weight W (out, in) only k entries are tuned: y = x (W + S(v))ᵀ + b, with v (k,) in fp32 at sorted positions.
The gradient of v is taken from dyᵀ x one tile of rows at a time (or entry by entry where there are very few), and
W + S(v) is built again in the backward pass, so memory grows with k and not with the weights. Which entries are tuned
is changed during training by `core.sparse.spiel_training`; here a support only counts the gradients it is asked to
watch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import nn

from core.errors import ConfigError, MergeError, nearest
from core.models.linear import dense_weight, features, is_linear_like, set_dense_weight
from core.models.peft_registry import peft_type, register_method
from core.models.topology import block_linears
from core.sparse.entries import add_into, read
from core.sparse.support import bounds, draw_positions, index_dtype, sampled_product, shares, tiles
from core.sparse.window import Window

SELECTIONS = ("ag", "ma", "random", "grad_once")
RATES = ("linear", "cosine", "constant")
APPLY = ("add", "separate")
GRAD_MODES = ("tiles", "sddmm")


@dataclass
class SpielConfig(PeftConfig):
    """Options of SpIEL.

    Args:
        density: share of the target weights that is tuned. num_tunable_weights: their number, instead.
        num_deltas: entries of each target, by name; filled in when the adapter is attached.
        selection: ag grows what gradients accumulated over a window ask for, ma what the optimizer's row and column
            accumulators ask for; random and grad_once keep one support, as baselines.
        reselection_steps: from one reselection to the next. accumulation_steps: of ag's window.
        rate_policy, initial_rate: share replaced at each reselection; the first replaces all.
        apply: add rounds W + v to W's format, as a merged model will; separate computes x Wᵀ + x Sᵀ.
        grad_mode: tiles makes all of dyᵀ x, at most 64 MiB of it at a time, and picks the entries: 2 N out·in FLOPs a
            map of N tokens, whatever k. sddmm gathers both factors for each entry, at most 64 MiB at a time too: it
            reads 2 N k numbers in no order, which is less work only for very few entries (k far below out·in / 300).
            Both give the same sums; a window's first backward pass takes tiles in either.
        seed: of the first positions.
    """

    density: float = field(default=0.01)
    num_tunable_weights: int | None = field(default=None)
    num_deltas: dict[str, int] = field(default_factory=dict)
    selection: Literal["ag", "ma", "random", "grad_once"] = field(default="ag")
    reselection_steps: int = field(default=20)
    accumulation_steps: int = field(default=5)
    rate_policy: Literal["linear", "cosine", "constant"] = field(default="linear")
    initial_rate: float = field(default=0.2)
    apply: Literal["add", "separate"] = field(default="add")
    grad_mode: Literal["tiles", "sddmm"] = field(default="tiles")
    seed: int = field(default=0)
    target_modules: Any = field(default=None)
    exclude_modules: Any = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("spiel")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        for name, known in (
            ("selection", SELECTIONS),
            ("rate_policy", RATES),
            ("apply", APPLY),
            ("grad_mode", GRAD_MODES),
        ):
            if (value := getattr(self, name)) not in known:
                hint = " ".join(filter(None, [nearest(str(value), known), f"known: {', '.join(known)}"]))
                raise ConfigError(f"unknown {name} '{value}'", where="spiel", hint=hint)
        for name in ("density", "initial_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)}", where="spiel", hint="above 0, at most 1")
        if self.num_tunable_weights is not None and self.num_tunable_weights < 1:
            raise ConfigError(f"{self.num_tunable_weights} tunable weights", where="spiel", hint="at least 1")
        if not 1 <= self.accumulation_steps < self.reselection_steps:
            raise ConfigError(
                f"a window of {self.accumulation_steps} steps every {self.reselection_steps}",
                where="spiel.accumulation_steps",
                hint="at least 1, and less than reselection_steps",
            )


class Positions(nn.Module):
    """Integer vectors by adapter name, saved and moved with the module that holds them."""

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.register_buffer(name, value)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._buffers[name]  # type: ignore[return-value]

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def keys(self) -> list[str]:
        return list(self._buffers)


class SparseDelta(torch.autograd.Function):
    """x (…, in) → x (W + S(v))ᵀ (…, out). Keeps x and v; the weight is asked for again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: SpielLayer, names: list[str], *values: torch.Tensor) -> torch.Tensor:
        ctx.layer, ctx.names = layer, names
        ctx.save_for_backward(x, *values)
        parts = [F.linear(x, part) for part in layer.summands(names, values, x.dtype)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        x, *values = ctx.saved_tensors
        dy, layer, names = upstream[0], ctx.layer, ctx.names
        dx = None
        if ctx.needs_input_grad[0]:
            parts = [dy @ part for part in layer.summands(names, values, dy.dtype)]
            dx = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        wanted = [name for name, needed in zip(names, ctx.needs_input_grad[3:]) if needed]
        found = layer.value_gradients(x.flatten(0, -2), dy.flatten(0, -2), wanted) if wanted else {}
        return dx, None, None, *(found.get(name) for name in names)


class SpielLayer(nn.Module, BaseTunerLayer):
    """A frozen linear map with tuned entries; active adapters add up."""

    adapter_layer_names = ("spiel_values",)
    other_param_names = ("spiel_indices",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SpielConfig, count: int, seed: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features(self.get_base_layer())
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.spiel_values, self.spiel_indices = nn.ParameterDict(), Positions()
        self.options: dict[str, SpielConfig] = {}
        self.windows: dict[str, Window] = {}
        self.merged_adapters: list[str] = []
        self._before_merge: list[tuple[str, torch.Tensor]] | torch.Tensor | None = None
        self._cuts: dict[str, tuple[Any, list[int]]] = {}
        self._disable_adapters, self._active_adapter = False, adapter_name
        self.update_layer(adapter_name, config, count, seed)

    def update_layer(self, adapter_name: str, config: SpielConfig, count: int, seed: int) -> None:
        """Add an adapter of `count` entries at random positions, all zero."""
        self.spiel_values[adapter_name] = nn.Parameter(torch.zeros(count))
        numel = self.in_features * self.out_features
        if self.spiel_values[adapter_name].is_meta:
            self.spiel_indices[adapter_name] = torch.empty(count, dtype=index_dtype(numel))
        else:
            generator = torch.Generator().manual_seed(seed)
            self.spiel_indices[adapter_name] = draw_positions(numel, count, generator)
        self.options[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """Values stay in fp32 over any base."""
        target = device or next((t.device for t in [*self.base_layer.parameters(), *self.base_layer.buffers()]), None)
        values = self.spiel_values[adapter_name]
        if target is None or target.type == "meta" or values.is_meta:
            return
        values.data = values.data.to(target)
        self.spiel_indices[adapter_name] = self.spiel_indices[adapter_name].to(target)

    # ---- the weight ------------------------------------------------------------------------------------------------

    def base_weight(self) -> torch.Tensor:
        """W (out, in), dequantized where it is stored in fewer bits."""
        base = self.get_base_layer()
        return dense_weight(base) if self.quantization_backend is None else self.get_base_weight()

    def tuned_weight(self, names: list[str], values: Any, dtype: torch.dtype) -> torch.Tensor:
        """W + S(v) in `dtype`; the sum of an entry is rounded once for each adapter."""
        stored = self.base_weight().detach().contiguous()
        made = stored.to(dtype, copy=True)
        flat, source = made.view(-1), stored.view(-1)
        for name, value in zip(names, values):
            add_into(flat, source, self.spiel_indices[name], value.detach())
            source = flat
        return made

    def summands(self, names: list[str], values: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        """The matrices whose products with x add up to the output: one sum, or W and S apart."""
        if all(self.options[name].apply == "add" for name in names):
            return [self.tuned_weight(names, values, dtype)]
        delta = torch.zeros(self.out_features * self.in_features, dtype=torch.float32, device=values[0].device)
        for name, value in zip(names, values):
            delta.index_add_(0, self.spiel_indices[name], value.detach().float())
        return [self.base_weight().detach().to(dtype), delta.view(self.out_features, self.in_features).to(dtype)]

    def value_gradients(self, x: torch.Tensor, dy: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        """dv of each adapter from x (N, in) and dy (N, out)."""
        ranges = tiles(self.out_features, self.in_features, x.element_size())
        watching = {name: window for name, window in self.windows.items() if name in names}
        for window in watching.values():
            if window.positions is None:
                window.choose(self._gradient_tiles(x, dy, ranges))
        few = [name for name in names if self.options[name].grad_mode == "sddmm"]
        found = {name: sampled_product(dy, x, self.spiel_indices[name]) for name in few}
        for name in few:
            if name in watching:
                watching.pop(name).add_at(lambda positions: sampled_product(dy, x, positions))
        many = [name for name in names if name not in few]
        return found | (self._gathered(x, dy, ranges, many, watching) if many else {})

    def _gathered(
        self, x: torch.Tensor, dy: torch.Tensor, ranges: list[tuple[int, int]], names: list[str],
        watching: dict[str, Window],
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """dv of each adapter, a tile of dW = dyᵀ x at a time."""
        found = {name: torch.empty_like(self.spiel_values[name]) for name in names}
        cuts = {name: self._cut(name, ranges) for name in names}
        seen = {name: window.cuts(ranges, self.in_features) for name, window in watching.items()}
        for number, (flat, start) in enumerate(self._gradient_tiles(x, dy, ranges)):
            for name, gradient in found.items():
                piece = slice(*cuts[name][number : number + 2])
                read(flat, self.spiel_indices[name][piece], start, gradient[piece])
            for name, window in watching.items():
                window.add(flat, start, slice(*seen[name][number : number + 2]))
        return found

    def _gradient_tiles(
        self, x: torch.Tensor, dy: torch.Tensor, ranges: list[tuple[int, int]]
    ) -> Iterator[tuple[torch.Tensor, int]]:
        """Rows of dW as a flat vector, and the position of its first entry."""
        for first, last in ranges:
            yield (dy[:, first:last].t() @ x).flatten(), first * self.in_features

    def _cut(self, name: str, ranges: list[tuple[int, int]]) -> list[int]:
        """`bounds` of an adapter's positions, found again only after they changed."""
        positions = self.spiel_indices[name]
        key = (id(positions), positions._version, len(ranges))
        if name not in self._cuts or self._cuts[name][0] != key:
            self._cuts[name] = (key, bounds(positions, ranges, self.in_features))
        return self._cuts[name][1]

    def places(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column (k,) of every tuned entry."""
        positions = self.spiel_indices[name].long()
        return positions // self.in_features, positions % self.in_features

    # ---- what peft asks for ----------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.spiel_values]
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged or not names:
            return self.base_layer(x, *args, **kwargs)
        bias = getattr(self.get_base_layer(), "bias", None)
        y = self._product(x, names)
        return y if bias is None else y + bias.to(y.dtype)

    @torch.compiler.disable
    def _product(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return SparseDelta.apply(x, self, names, *(self.spiel_values[name] for name in names))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the values to the base. Raises `MergeError` for a sum that is not finite."""
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.spiel_values]
        if not names:
            return
        base, stored = self.get_base_layer(), self.base_weight().detach()
        values = [self.spiel_values[name] for name in names]
        merged = self.tuned_weight(names, values, stored.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise MergeError(f"the merged weight of {tuple(merged.shape)} is not finite")
        if stored.dtype != torch.float32 and any(self.options[name].apply == "separate" for name in names):
            warnings.warn(f"merging rounds the sum to {stored.dtype}; beside the base it was exact", stacklevel=2)
        before: Any = self._before_merge
        if self.quantization_backend is not None or hasattr(base, "set_dense_weight"):
            warnings.warn("merging into a quantized base rounds the sum anew", stacklevel=2)
            before = stored.clone() if before is None else before
        else:
            flat = stored.contiguous().view(-1)
            before = [*(before or []), *((name, flat[self.spiel_indices[name].long()].clone()) for name in names)]
        self._set_base_weight(merged)
        self._before_merge = before
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Put the entries of before all merges back, bit for bit; in a quantized base, the dequantized weight."""
        if self._before_merge is None:
            return
        if isinstance(self._before_merge, torch.Tensor):
            weight = self._before_merge
        else:
            weight = self.base_weight().detach().contiguous().clone()
            for name, old in reversed(self._before_merge):
                weight.view(-1)[self.spiel_indices[name].long()] = old
        self._set_base_weight(weight)
        self._before_merge, self.merged_adapters = None, []

    def _set_base_weight(self, weight: torch.Tensor) -> None:
        if self.quantization_backend is None:
            set_dense_weight(self.get_base_layer(), weight)
        else:
            self.set_base_weight(weight)


class SpielModel(BaseTuner):
    """Puts tuned entries into the target maps; without targets, into every linear map of the blocks.

    Of blocks with a learning copy (Control LLM), only the copies are targets.
    """

    prefix = "spiel_"
    tuner_layer_cls = SpielLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        if peft_config.target_modules in (None, "all-linear"):
            peft_config.target_modules = set(block_linears(self.model))
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Share the budget over the targets, before any of them is touched."""
        found = {
            key: part
            for key, part in model.named_modules()
            if key and ".base_layer" not in key and self._check_target_module_exists(peft_config, key)
        }
        sizes: dict[str, int] = {}
        for key, part in found.items():
            inner = part.get_base_layer() if isinstance(part, SpielLayer) else part
            if not is_linear_like(inner):
                raise ConfigError(f"'{key}' is a {type(inner).__name__}, not a linear map", where="spiel")
            inside, outside = features(inner)
            sizes[key] = inside * outside
        if not sizes:
            endings = sorted({n.rpartition(".")[2] for n, part in model.named_modules() if is_linear_like(part)})
            wanted = (
                [peft_config.target_modules]
                if isinstance(peft_config.target_modules, str)
                else sorted(peft_config.target_modules)
            )
            close = [hint for name in wanted if (hint := nearest(name, endings))]
            raise ConfigError(
                f"no module matches the targets {', '.join(wanted)}",
                where="spiel",
                hint=" ".join([*close, f"linear modules here: {', '.join(endings)}"]),
            )
        if set(peft_config.num_deltas) != set(sizes):
            whole = sum(sizes.values())
            budget = peft_config.num_tunable_weights or max(1, round(peft_config.density * whole))
            if not len(sizes) <= budget <= whole:
                raise ConfigError(
                    f"{budget} tuned entries for {len(sizes)} targets of {whole} weights in all",
                    where="spiel.num_tunable_weights" if peft_config.num_tunable_weights else "spiel.density",
                    hint=f"{len(sizes)} to {whole}",
                )
            peft_config.num_deltas = shares(sizes, budget)

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str,
        parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        names = sorted(peft_config.num_deltas)
        count, seed = peft_config.num_deltas[current_key], peft_config.seed * 100_003 + names.index(current_key)
        if isinstance(target, SpielLayer):
            target.update_layer(adapter_name, peft_config, count, seed)
            return
        new = SpielLayer(target, adapter_name, peft_config, count, seed)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)


def spiel_layers(model: Any) -> dict[str, SpielLayer]:
    """Every layer with tuned entries, by its name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, SpielLayer)}


register_method("spiel", SpielConfig, SpielModel, "spiel_")
