"""LoRA on quantized layers, registered with peft.

peft's own LoRA layer merges by writing into a weight tensor, which a layer that computes its weight does not have; this
one merges by rounding the sum again with the layer's own grid, or into a dense layer, and unmerges by putting the
stored codes back. A quantized layer names this class (`lora_layer`), and whoever lays an adapter on a model tells peft.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from core.errors import MergeError, UnsupportedError


class QuantLoraLinear(nn.Module, LoraLayer):
    """base(x) + scaling · B(A(dropout(x))) over a layer whose weight is computed.

    The product is taken in the adapter's dtype and added in the base's.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: Any, r: int = 0, lora_alpha: int = 1, **kwargs: Any
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # peft warns of every layer type that it does not dispatch itself, and reads the right sizes
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            LoraLayer.__init__(self, base_layer)
        if config.use_dora:
            raise UnsupportedError(
                "DoRA on a quantized base", where="model.adapters", hint="use lora, or an unquantized base"
            )
        self.fan_in_fan_out = False
        self._active_adapter = adapter_name
        self._stored: dict[str, torch.Tensor] | None = None
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x)
        if self.disable_adapters or self.merged:
            if self.disable_adapters and self.merged:
                self.unmerge()
                result = self.base_layer(x)
            return result
        for name in self.active_adapters:
            if name in self.lora_A:
                a, b = self.lora_A[name], self.lora_B[name]
                update = b(a(self.lora_dropout[name](x.to(a.weight.dtype)))) * self.scaling[name]
                result = result + update.to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """scaling · B A, fp32 (out, in)."""
        return self.scaling[adapter] * (self.lora_B[adapter].weight.float() @ self.lora_A[adapter].weight.float())

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None, to: str = "codes") -> None:
        """Fold adapters in. `to`: "codes" rounds the sum again with the layer's spec; "dense" makes an `nn.Linear`.

        The relative error of the rounding is kept in `merge_error`.
        """
        names = [
            n for n in (adapter_names or self.active_adapters) if n in self.lora_A and n not in self.merged_adapters
        ]
        if not names:
            return
        base = self.get_base_layer()
        weight = base.dense_weight() + sum(self.get_delta_weight(name) for name in names)
        if not bool(torch.isfinite(weight).all()):
            raise MergeError("the merged weight is not finite", where=type(base).__name__, hint="look at the adapter")
        if to == "dense":
            self.base_layer = dense_of(base, weight, self.lora_A[names[0]].weight.dtype)
            self.merge_error = 0.0
        else:
            if self._stored is None:
                self._stored = {key: value.clone() for key, value in base.state_dict().items()}
            self.merge_error = base.requantize(weight)
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Put the stored codes back, exactly. Raises `MergeError` after a merge into a dense layer."""
        if not self.merged:
            return
        if self._stored is None:
            raise MergeError("a merge into a dense layer is not undone", hint="load the adapter on its base again")
        self.get_base_layer().load_state_dict(self._stored)
        self._stored, self.merged_adapters = None, []

    def __repr__(self) -> str:
        return "lora." + super().__repr__()


def dense_of(base: Any, weight: torch.Tensor, dtype: torch.dtype) -> nn.Linear:
    """A plain linear map with this weight and the base's bias."""
    made = nn.Linear(base.in_features, base.out_features, base.bias is not None, device=weight.device, dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if base.bias is not None:
            made.bias.copy_(base.bias)
    return made


def prepare_for_training(model: Any, gradient_checkpointing: bool = False) -> Any:
    """Freeze everything and let gradients reach the adapters through the embedding's output.

    Args:
        gradient_checkpointing: recompute activations in the backward pass.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    return model
