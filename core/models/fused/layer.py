"""Decoder layers of the Llama family run on fused kernels, from outside: modules, names and weights stay as they are.

A layer gets a subclass of its own class whose forward is the same mathematics with the residual stream added inside
the norms and with projections that share their input computed together. What cannot be fused falls back to the layer's
own modules: an attention of another kind, a cache, hooks between. How a projection is computed is the caller's affair
(`Arithmetic`): that is where adapters come in, of which this module knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from core.models.fused.ops import add_rms_norm, gated, rotary

ATTENTIONS = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}
LAYERS = {
    "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer",
}  # fmt: skip


def each_by_itself(x: torch.Tensor, modules: Sequence[Any]) -> list[torch.Tensor]:
    """The modules' own forward on one input."""
    return [module(x) for module in modules]


def gated_then(gate: torch.Tensor, up: torch.Tensor, module: Any) -> torch.Tensor:
    """module(silu(gate) · up)."""
    return module(gated(gate, up))


@dataclass(frozen=True)
class Arithmetic:
    """How projections are computed.

    Args:
        project: (x, modules) → each module's output. gated_project: (gate, up, module) → module(silu(gate) · up).
    """

    project: Callable[[torch.Tensor, Sequence[Any]], list[torch.Tensor]] = each_by_itself
    gated_project: Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor] = gated_then


def fuse_layers(model: Any, arithmetic: Arithmetic | None = None) -> int:
    """Let every decoder layer that is understood run fused. Returns their number; `unfuse_layers` takes it back."""
    count = 0
    for module in list(model.modules()):
        if type(module).__name__ in LAYERS and not hasattr(module, "arithmetic") and _understood(module):
            module.__class__ = _fused(type(module))
            module.arithmetic = arithmetic or Arithmetic()
            count += 1
    return count


def unfuse_layers(model: Any) -> None:
    """Give every layer its own forward again."""
    for module in model.modules():
        if hasattr(module, "arithmetic"):
            del module.arithmetic
            module.__class__ = type(module).__mro__[1]


def _understood(layer: Any) -> bool:
    """The family's own norms and gated product, with silu: a module that an edit or adapter has replaced is not."""
    family = type(layer).__name__.removesuffix("DecoderLayer")
    kinds = {"input_layernorm": "RMSNorm", "post_attention_layernorm": "RMSNorm", "mlp": "MLP"}
    own = all(type(getattr(layer, name, None)).__name__ == family + kind for name, kind in kinds.items())
    return own and type(getattr(layer.mlp, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")


def _watched(layer: Any) -> bool:
    """Whether somebody listens at a module that a fused layer would not call, or has given it another forward."""
    inner = (layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp)
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or "forward" in vars(m) for m in inner)


@cache
def _fused(layer_class: type) -> type:
    """A subclass under the same name; transformers wraps its forward for activation checkpointing as it does any."""

    def forward(self, hidden_states, *positional, **given):
        unusual = positional or given.get("past_key_values") is not None or given.get("position_embeddings") is None
        if unusual or _watched(self):
            return layer_class.forward(self, hidden_states, *positional, **given)
        first, second = self.input_layernorm, self.post_attention_layernorm
        normed, stream = add_rms_norm(hidden_states, None, first.weight, first.variance_epsilon)
        attended = _attend(self, normed, given)
        normed, stream = add_rms_norm(stream, attended, second.weight, second.variance_epsilon)
        gate, up = self.arithmetic.project(normed, [self.mlp.gate_proj, self.mlp.up_proj])
        return stream + self.arithmetic.gated_project(gate, up, self.mlp.down_proj)

    members = {"forward": forward, "__module__": layer_class.__module__}
    return type(layer_class.__name__, (layer_class,), members)


def _attend(layer: Any, x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    attention = layer.self_attn
    implementation = attention.config._attn_implementation
    if type(attention).__name__ not in ATTENTIONS or implementation == "eager":
        return attention(hidden_states=x, **given)[0]
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    project, heads = layer.arithmetic.project, (*x.shape[:-1], -1, attention.head_dim)
    q, k, v = (y.view(heads) for y in project(x, [attention.q_proj, attention.k_proj, attention.v_proj]))
    cos, sin = given["position_embeddings"]
    q, k = rotary(q, cos, sin), rotary(k, cos, sin)
    passed = {name: value for name, value in given.items() if name not in _OWN}
    if type(attention).__name__ == "MistralAttention":
        passed["sliding_window"] = getattr(attention.config, "sliding_window", None)
    elif type(attention).__name__ == "Qwen2Attention":
        passed["sliding_window"] = attention.sliding_window
    out, _ = ALL_ATTENTION_FUNCTIONS[implementation](
        attention, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), given.get("attention_mask"),
        dropout=attention.attention_dropout if attention.training else 0.0, scaling=attention.scaling, **passed,
    )  # fmt: skip
    return project(out.reshape(*x.shape[:-1], -1), [attention.o_proj])[0]


_OWN = ("position_embeddings", "attention_mask", "past_key_values", "use_cache")
