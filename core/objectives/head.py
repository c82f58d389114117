"""The head of a causal language model, as a loss sees it: what comes in, and what is done with it.

The states before the head are caught by a hook while the model computes the logits of one position a row, which then
prove that the head was understood. A head of any other kind (adapted, quantized, edited) is called as the module it
is. This module knows transformers' models and no loss.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from core.objectives.linear_cross_entropy import HeadShape


@dataclass
class PlainHead:
    """A head that is one dense matrix. weight (V, D); bias (V,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    shape: HeadShape

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model calls its logits, fp32."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return self.shape.of(torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias).float())


def head_module(model: Any) -> Any:
    """The module that makes logits; None when the model has none."""
    bare = model.module if hasattr(model, "module") and not hasattr(model, "config") else model
    return bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None


def plain_head(model: Any, smoothing: float = 0.0, z_loss: float = 0.0) -> PlainHead | None:
    """The head as a matrix; None when it is anything else than a dense linear map."""
    head = head_module(model)
    saved = getattr(head, "modules_to_save", None)
    if saved is not None:
        active = head.active_adapter if isinstance(head.active_adapter, str) else head.active_adapter[0]
        head = saved[active] if active in saved and not head.disable_adapters else head.original_module
    if type(head) is not torch.nn.Linear:
        return None
    return PlainHead(head.weight, head.bias, HeadShape(*_after_head(model), smoothing, z_loss))


def _after_head(model: Any) -> tuple[float, float | None]:
    """Scale and softcap as the config names them: Cohere multiplies, Granite divides, Gemma 2 caps."""
    bare = model.module if hasattr(model, "module") and not hasattr(model, "config") else model
    config = bare.config.get_text_config() if hasattr(bare.config, "get_text_config") else bare.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    return scale / divisor, getattr(config, "final_logit_softcapping", None)


class caught_states:
    """A context in which the head keeps what comes in and computes the last position of every row only.

    Attributes:
        states: (B, T, D), what went into the head of the one call made inside.
        autocast: how the head was called; Trainers put autocast around the model alone, and not around the loss.
    """

    def __init__(self, model: Any) -> None:
        self.head = head_module(model)
        self.states: Any = None
        self.autocast: Any = nullcontext()

    def __enter__(self) -> caught_states:
        self._handle = self.head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()

    def _keep(self, _module: Any, given: Any) -> Any:
        self.states, kind = given[0], given[0].device.type
        self.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
        return (given[0][:, -1:], *given[1:])


def understood(head: PlainHead, states: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether the model's own logits (B, 1, V) of the last position are those that `head` makes of its states."""
    with torch.no_grad():
        ours = head.logits(states[:, -1:].detach())
        theirs = logits.detach().float()
        return bool((ours - theirs).abs().max() <= 0.02 * theirs.abs().max() + 1e-3)
