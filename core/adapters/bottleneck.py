"""Series and parallel adapters at a linear map (Hu et al. 2023, LLM-Adapters), as a tuner of peft.

For a target z = W x + b, a bottleneck of rank r with matrices D and U, an activation σ and a scale s:

    series_out   y = z + s U σ(D z)             behind a map that writes the residual stream
    series_in    y = W (x + s U σ(D x)) + b     before a map that reads it
    parallel     y = z + s U σ(D x)

The default starts at the identity (U = 0); `init="bert"` draws both matrices from N(0, 0.02) as the published code
does, which changes the model before the first step. The branch is computed in fp32 when the base is in half precision.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import nn

from core.adapters.attach import closest_targets
from core.errors import ConfigError, MergeError, UnsupportedModelError, nearest
from core.models.linear import dense_weight, features, is_linear_like, set_dense_weight
from core.models.peft_registry import peft_type, register_method
from core.models.topology import ModelTopology

MODES = ("auto", "series_in", "series_out", "parallel")
ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu, None: None}
INITS = ("zero_up", "bert")
READS, WRITES = ("q", "k", "v", "qkv", "gate", "up"), ("o", "down")


@dataclass
class BottleneckConfig(PeftConfig):
    """Options of the bottleneck adapter.

    Args:
        r: width of the bottleneck. mode: where it sits; auto is series_in before maps that read the residual stream
            (q, k, v, gate, up) and series_out behind those that write it (o, down).
        act: tanh, relu, gelu, silu, or None, with which the adapter can be merged.
        dropout: on the bottleneck's input. scaling: s, a number or "learned" (one scalar a target, 1 at the start).
        init: zero_up or bert. fp32_branch: compute the branch in fp32 whatever the base's format.
    """

    r: int = field(default=256)
    mode: Literal["auto", "series_in", "series_out", "parallel"] = field(default="auto")
    act: str | None = field(default="tanh")
    dropout: float = field(default=0.0)
    scaling: float | str = field(default=1.0)
    init: Literal["zero_up", "bert"] = field(default="zero_up")
    fp32_branch: bool = field(default=True)
    target_modules: Any = field(default=None)
    exclude_modules: Any = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("bottleneck")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("act", self.act, tuple(ACTIVATIONS)),
            ("init", self.init, INITS),
        ):
            if value not in known:
                hint = " ".join(
                    filter(None, [nearest(str(value), map(str, known)), f"known: {', '.join(map(str, known))}"])
                )
                raise ConfigError(f"unknown {name} '{value}'", where="bottleneck adapter", hint=hint)
        if self.r < 1:
            raise ConfigError(f"a bottleneck of width {self.r}", where="bottleneck adapter", hint="at least 1")
        if self.scaling != "learned" and not isinstance(self.scaling, (int, float)):
            raise ConfigError(f"scaling '{self.scaling}'", where="bottleneck adapter", hint="a number, or learned")


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear map with bottleneck adapters, applied in the order in which they are active."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_scale")
    other_param_names = ("bottleneck_dropout",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, mode: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features(self.get_base_layer())
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_scale, self.bottleneck_dropout = nn.ParameterDict(), nn.ModuleDict()
        self.modes: dict[str, str] = {}
        self.options: dict[str, BottleneckConfig] = {}
        self.merged_adapters: list[str] = []
        self._before_merge: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self._disable_adapters, self._active_adapter = False, adapter_name
        self.update_layer(adapter_name, config, mode)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, mode: str) -> None:
        """Add an adapter with fresh weights."""
        inside = self.out_features if mode == "series_out" else self.in_features
        outside = self.in_features if mode == "series_in" else self.out_features
        down, up = nn.Linear(inside, config.r, bias=False), nn.Linear(config.r, outside, bias=False)
        if config.init == "bert":
            nn.init.normal_(down.weight, std=0.02)
            nn.init.normal_(up.weight, std=0.02)
        else:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        if config.scaling == "learned":
            self.bottleneck_scale[adapter_name] = nn.Parameter(torch.ones(()))
        self.modes[adapter_name], self.options[adapter_name] = mode, config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """s U σ(D x) in x's dtype."""
        config = self.options[name]
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        activation, kept = ACTIVATIONS[config.act], self.bottleneck_dropout[name](x)
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not config.fp32_branch):
            dtype = torch.float32 if config.fp32_branch and x.dtype in (torch.bfloat16, torch.float16) else x.dtype
            inner = F.linear(kept.to(dtype), down.weight.to(dtype))
            inner = inner if activation is None else activation(inner)
            out = F.linear(inner.to(dtype), up.weight.to(dtype))
            return (out * self.scale(name)).to(x.dtype)

    def scale(self, name: str) -> Any:
        """s, a number or the learnt scalar."""
        return self.bottleneck_scale[name] if name in self.bottleneck_scale else float(self.options[name].scaling)

    def update(self, name: str) -> torch.Tensor:
        """s U D in fp32, what a linear adapter computes."""
        return self.scale(name) * self.bottleneck_up[name].weight.float() @ self.bottleneck_down[name].weight.float()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.bottleneck_down]
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged or not names:
            return self.base_layer(x, *args, **kwargs)
        given = x
        for name in names:
            if self.modes[name] == "series_in":
                x = x + self.branch(name, x)
        y = self.base_layer(x, *args, **kwargs)
        for name in names:
            if self.modes[name] == "series_out":
                y = y + self.branch(name, y)
            elif self.modes[name] == "parallel":
                y = y + self.branch(name, given)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold linear adapters into the base. Raises `MergeError` when one has an activation."""
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.bottleneck_down]
        curved = [n for n in names if self.options[n].act is not None]
        if curved:
            raise MergeError(
                f"adapter '{curved[0]}' has an activation ({self.options[curved[0]].act}) and so is no linear map",
                hint="keep the adapter beside the base, or train it with act: null",
            )
        if not names:
            return
        base = self.get_base_layer()
        stored, bias = self._before_merge or (self._base_weight(), getattr(base, "bias", None))
        before = (stored.detach().clone(), None if bias is None else bias.detach().clone())
        # from the base on, since what comes first stands innermost
        together = [*self.merged_adapters, *names]
        merged, shift = stored.detach().float(), None if bias is None else bias.detach().float()
        with torch.no_grad():
            for name in reversed(together):
                if self.modes[name] == "series_in":
                    merged = merged + merged @ self.update(name)
            for name in together:
                if self.modes[name] == "series_out":
                    merged = merged + self.update(name) @ merged
                    shift = None if shift is None else shift + self.update(name) @ shift
                elif self.modes[name] == "parallel":
                    merged = merged + self.update(name)
            if safe_merge and not torch.isfinite(merged).all():
                raise MergeError(f"the merged weight of {tuple(merged.shape)} is not finite")
            if self.quantization_backend is not None or hasattr(base, "set_dense_weight"):
                warnings.warn("merging into a quantized base rounds the sum anew", stacklevel=2)
            self._set_base_weight(merged)
            if shift is not None:
                base.bias.copy_(shift)
        self._before_merge, self.merged_adapters = before, together

    def unmerge(self) -> None:
        """Put back the weight of before all merges, bit for bit."""
        if self._before_merge is None:
            return
        base, (weight, bias) = self.get_base_layer(), self._before_merge
        self._set_base_weight(weight)
        if bias is not None:
            with torch.no_grad():
                base.bias.copy_(bias)
        self._before_merge, self.merged_adapters = None, []

    def _base_weight(self) -> torch.Tensor:
        """W (out, in) of the base, dequantized where it is stored in fewer bits."""
        return dense_weight(self.get_base_layer()) if self.quantization_backend is None else self.get_base_weight()

    def _set_base_weight(self, weight: torch.Tensor) -> None:
        if self.quantization_backend is None:
            set_dense_weight(self.get_base_layer(), weight)
        else:
            self.set_base_weight(weight)


class BottleneckModel(BaseTuner):
    """Puts bottleneck adapters on the target modules; without targets, on gate and up (before) and down (behind)."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(ModelTopology.of(self.model).targets("gate", "up", "down"))
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Look at every target before any of them is touched."""
        found = [
            (key, part)
            for key, part in model.named_modules()
            if key and ".base_layer" not in key and self._check_target_module_exists(peft_config, key)
        ]
        if not found:
            raise ConfigError(
                "no module matches the targets", where="bottleneck adapter",
                hint=closest_targets(model, peft_config.target_modules),
            )  # fmt: skip
        for key, part in found:
            inner = part.get_base_layer() if isinstance(part, BaseTunerLayer) else part
            if not is_linear_like(inner):
                raise ConfigError(
                    f"'{key}' is a {type(inner).__name__}, not a linear map", where="bottleneck adapter",
                    hint=closest_targets(model, []),
                )  # fmt: skip
            self._mode(peft_config, inner, key)

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str
    ) -> None:
        inner = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        mode = self._mode(peft_config, inner, current_key)
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config, mode)
            return
        new = BottleneckLayer(target, adapter_name, peft_config, mode)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _mode(self, config: Any, target: Any, key: str) -> str:
        if config.mode != "auto":
            return config.mode
        try:
            topology = ModelTopology.of(self.model)
        except UnsupportedModelError as error:
            raise ConfigError(
                f"mode auto: {error.what}", where=key, hint="set mode to series_in, series_out or parallel"
            ) from error
        for block in topology.blocks:
            for role, part in block.linears().items():
                if target in (part, part.get_base_layer() if isinstance(part, BaseTunerLayer) else None):
                    return "series_in" if role in READS else "series_out"
        raise ConfigError(
            f"'{key}' is no part of a block, so auto cannot tell which side of it reads the stream",
            where="bottleneck adapter",
            hint="set mode to series_in, series_out or parallel",
        )


register_method("bottleneck", BottleneckConfig, BottleneckModel, "bottleneck_")
