"""Sequential and invertible adapters for small multilingual models, as a tuner of peft.

The sequential bottleneck sits behind the feed-forward part of every block (Pfeiffer et al. 2020); in a block whose norm
comes last, h is the feed-forward output, x the residual input and LN the block's own norm:

    out = LN(h + a + x),   a = U σ(D LN(h + x) + b_D) + b_U

In a block whose norms come first, out = x + h + U σ(D (h + x) + b_D) + b_U. The invertible adapter is a NICE coupling
(Dinh et al. 2014) behind the embeddings, undone before the output embedding with the same weights (Pfeiffer et al.
2020, MAD-X). Several active adapters form a stack: each sees the output of the one before in the place of h, and the
first one's coupling is used. Gurgurov et al. 2025 compare the forms on languages with little text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from core.errors import ConfigError, MergeError, UnsupportedError, nearest
from core.models.peft_registry import peft_type, register_method
from core.models.topology import BlockRef, ModelTopology

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
NORM_FIRST = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


@dataclass
class SeqBottleneckConfig(PeftConfig):
    """Options of the sequential adapter.

    Args:
        reduction_factor: width of the stream over width of the bottleneck. act: relu, gelu, silu or tanh.
        invertible: "nice" adds the coupling at the embeddings. inv_reduction: half the stream over its inner width.
        ln_before: feed the bottleneck through the block's own norm (blocks whose norm comes last).
    """

    reduction_factor: int = field(default=16)
    act: str = field(default="relu")
    invertible: Literal["nice"] | None = field(default=None)
    inv_reduction: int = field(default=2)
    ln_before: bool = field(default=True)
    target_modules: Any = field(default=None)
    exclude_modules: Any = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("seq_bottleneck")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if self.act not in ACTIVATIONS:
            hint = " ".join(filter(None, [nearest(self.act, ACTIVATIONS), f"known: {', '.join(ACTIVATIONS)}"]))
            raise ConfigError(f"unknown activation '{self.act}'", where="sequential adapter", hint=hint)
        if self.invertible not in (None, "nice"):
            raise ConfigError(f"unknown coupling '{self.invertible}'", where="sequential adapter", hint="nice, or null")
        if self.reduction_factor < 1 or self.inv_reduction < 1:
            raise ConfigError("a reduction factor below 1", where="sequential adapter")


class Bottleneck(nn.Module):
    """U σ(D x + b_D) + b_U, weights from N(0, 0.02), biases zero."""

    def __init__(self, size: int, inner: int, act: str) -> None:
        super().__init__()
        self.down, self.up, self.act = nn.Linear(size, inner), nn.Linear(inner, size), ACTIVATIONS[act]
        for part in (self.down, self.up):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self.down.weight.dtype
        return self.up(self.act(self.down(x.to(dtype)))).to(x.dtype)


class NiceCoupling(nn.Module):
    """An additive coupling of the two halves of the last axis: o₁ = e₁ + F(e₂), o₂ = e₂ + G(o₁); log-determinant 0."""

    def __init__(self, size: int, reduction: int, act: str) -> None:
        super().__init__()
        half = size // 2
        self.f, self.g = (Bottleneck(half, half // reduction, act) for _ in range(2))

    def forward(self, e: torch.Tensor) -> torch.Tensor:
        first, second = e.chunk(2, -1)
        first = first + self.f(second)
        return torch.cat([first, second + self.g(first)], -1)

    def inverse(self, o: torch.Tensor) -> torch.Tensor:
        """e with forward(e) = o."""
        first, second = o.chunk(2, -1)
        second = second - self.g(first)
        return torch.cat([first - self.f(second), second], -1)


class SeqBottleneckLayer(nn.Module, BaseTunerLayer):
    """The module that ends a block's feed-forward part, with adapters behind it."""

    adapter_layer_names = ("seq_bottleneck_adapters",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SeqBottleneckConfig, block: BlockRef) -> None:
        super().__init__()
        self.base_layer, self.norm_last = base_layer, block.residual == "post_ln"
        self.size = block.norms[-1].weight.shape[0]
        self.seq_bottleneck_adapters = nn.ModuleDict()
        self.ln_before: dict[str, bool] = {}
        self.merged_adapters: list[str] = []
        self.residual: torch.Tensor | None = None
        self._disable_adapters, self._active_adapter = False, adapter_name
        self.hook = None if self.norm_last else block.norms[-1].register_forward_pre_hook(_KeepResidual(self))
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SeqBottleneckConfig) -> None:
        """Add an adapter with fresh weights."""
        inner = max(1, self.size // config.reduction_factor)
        self.seq_bottleneck_adapters[adapter_name] = Bottleneck(self.size, inner, config.act)
        self.ln_before[adapter_name] = config.ln_before
        self._move_adapter_to_device_of_base_layer(adapter_name, next(self.base_layer.parameters()).device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.seq_bottleneck_adapters]
        base, residual = self.base_layer, self.residual
        self.residual = None
        if not names:
            return base(hidden_states, *args, **kwargs)
        if self.norm_last:
            residual = args[0] if args else kwargs["input_tensor"]
            h = base.dropout(base.dense(hidden_states))
        else:
            h = base(hidden_states, *args, **kwargs)
        for name in names:
            seen = h + residual
            if self.norm_last and self.ln_before[name]:
                seen = base.LayerNorm(seen)
            h = h + self.seq_bottleneck_adapters[name](seen)
        return base.LayerNorm(h + residual) if self.norm_last else h

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise MergeError(
            "a sequential adapter has an activation and so folds into no weight",
            hint="keep the adapter beside the base",
        )

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class InvertibleLayer(nn.Module, BaseTunerLayer):
    """The embeddings, with a coupling behind them whose inverse stands before the output embedding."""

    adapter_layer_names = ("seq_bottleneck_couplings",)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SeqBottleneckConfig, size: int, head: Any
    ) -> None:
        super().__init__()
        self.base_layer, self.size = base_layer, size
        self.seq_bottleneck_couplings = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters, self._active_adapter = False, adapter_name
        self.hook = head.register_forward_pre_hook(_Invert(self))
        self.device = head.weight.device
        self.update_layer(adapter_name, config)

    def __getattr__(self, name: str) -> Any:
        """Models look for their word embeddings inside."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def update_layer(self, adapter_name: str, config: SeqBottleneckConfig) -> None:
        """Add a coupling with fresh weights."""
        self.seq_bottleneck_couplings[adapter_name] = NiceCoupling(self.size, config.inv_reduction, config.act)
        held = next(self.base_layer.parameters(), None)
        self._move_adapter_to_device_of_base_layer(adapter_name, self.device if held is None else held.device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def coupling(self) -> NiceCoupling | None:
        """The coupling in use: that of the first active adapter that has one."""
        if self.disable_adapters:
            return None
        held = self.seq_bottleneck_couplings
        return next((held[name] for name in self.active_adapters if name in held), None)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        e = self.base_layer(*args, **kwargs)
        return e if self.coupling is None else self.coupling(e)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise MergeError("a coupling folds into no embedding table", hint="keep the adapter beside the base")

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class _KeepResidual:
    """Hook of the norm before the feed-forward part: its input is the residual. An object, so that copies are whole."""

    def __init__(self, layer: SeqBottleneckLayer) -> None:
        self.layer = layer

    def __call__(self, _module: nn.Module, given: tuple) -> None:
        if not self.layer.disable_adapters:
            self.layer.residual = given[0]


class _Invert:
    """Hook of the output embedding: what enters it goes through the inverse coupling."""

    def __init__(self, layer: InvertibleLayer) -> None:
        self.layer = layer

    def __call__(self, _module: nn.Module, given: tuple) -> tuple | None:
        coupling = self.layer.coupling
        return None if coupling is None else (coupling.inverse(given[0]), *given[1:])


class SeqBottleneckModel(BaseTuner):
    """Puts sequential adapters behind every block, and a coupling at the embeddings where it is asked for."""

    prefix = "seq_bottleneck_"
    tuner_layer_cls = (SeqBottleneckLayer, InvertibleLayer)
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        topology = ModelTopology.of(self.model)
        for block in topology.blocks:
            if block.residual != "post_ln" and topology.family not in NORM_FIRST:
                raise UnsupportedError(
                    f"a {topology.family} block has no module that ends its feed-forward part",
                    where="sequential adapter",
                    hint=f"known: bert, roberta, xlm-roberta, {', '.join(NORM_FIRST)}",
                )
        size = topology.blocks[0].norms[-1].weight.shape[0]
        if peft_config.invertible:
            if size % 2:
                raise ConfigError(f"a stream of odd width {size} has no halves", where="sequential adapter, invertible")
            if topology.head is None:
                raise UnsupportedError(
                    "the model has no output embedding, so nothing undoes the coupling",
                    where="sequential adapter, invertible",
                    hint="use a model with a language modelling head, or invertible: null",
                )
        if peft_config.target_modules is None:
            targets = {topology.name_of(block.sublayer_out) for block in topology.blocks}
            if peft_config.invertible:
                targets.add(topology.name_of(topology.embeddings))
            peft_config.target_modules = targets
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Look at every target before any of them is touched."""
        topology = ModelTopology.of(model)
        ends = [topology.name_of(block.sublayer_out) for block in topology.blocks]
        known = {*ends, topology.name_of(topology.embeddings)} if peft_config.invertible else set(ends)
        found = [
            key
            for key, _ in model.named_modules()
            if key and ".base_layer" not in key and self._check_target_module_exists(peft_config, key)
        ]
        strange = next((key for key in found if key not in known), None)
        if strange is not None or not found:
            raise ConfigError(
                "no module matches the targets"
                if strange is None
                else f"'{strange}' does not end a block's feed-forward part",
                where="sequential adapter",
                hint=f"these do: {', '.join(ends[:2])}, …",
            )

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str
    ) -> None:
        if isinstance(target, SeqBottleneckLayer | InvertibleLayer):
            target.update_layer(adapter_name, peft_config)
            return
        topology = ModelTopology.of(self.model)
        if target is topology.embeddings:
            size = topology.blocks[0].norms[-1].weight.shape[0]
            new: nn.Module = InvertibleLayer(target, adapter_name, peft_config, size, topology.head)
        else:
            block = next(block for block in topology.blocks if block.sublayer_out is target)
            new = SeqBottleneckLayer(target, adapter_name, peft_config, block)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """peft expects the name next to the end of a key; here whole modules stand behind it."""
        for part in ("adapters", "couplings"):
            key = key.replace(f".seq_bottleneck_{part}.{adapter_name}.", f".seq_bottleneck_{part}.")
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """These layers wrap whole modules, which have no weight of their own to share."""
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if not merge:
            for module in self.model.modules():
                if isinstance(module, self.tuner_layer_cls) and module.hook is not None:
                    module.hook.remove()
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)


register_method("seq_bottleneck", SeqBottleneckConfig, SeqBottleneckModel, "seq_bottleneck_")
