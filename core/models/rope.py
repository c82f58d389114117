"""Rotary phases that survive a change of number format.

The angle of position p and pair i is p·θ^(-2i/d) (Su et al. 2021). In bf16 it is wrong by many turns at positions of a
few thousand, and `.to(bfloat16)` on a model also converts the buffer of frequencies. `keep_exact` leaves that buffer
in fp32 whatever the model is converted to. In fp32 the rounding of the angle still grows to 0.01 at 131k, so models
with a context above `LONG` compute the phases of the plain rotary form in fp64; shorter ones stay bit for bit as
transformers computes them.
"""

from __future__ import annotations

import types
from typing import Any

LONG = 8192


def keep_exact(model: Any) -> Any:
    """Protect every rotary embedding in `model`, in place. Returns the model."""
    for module in model.modules():
        if not any("inv_freq" in name for name in module._buffers):
            continue
        module._apply = types.MethodType(_apply_keeping_frequencies, module)
        plain = getattr(module, "rope_type", None) == "default"
        if plain and getattr(module.config, "max_position_embeddings", 0) > LONG:
            module.forward = types.MethodType(_phases_in_fp64, module)
    return model


def _apply_keeping_frequencies(self: Any, fn: Any, recurse: bool = True) -> Any:
    """`nn.Module._apply`, after which the frequencies are on the new device with their old values."""
    kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and "inv_freq" in name}
    type(self)._apply(self, fn, recurse)
    for name, buffer in kept.items():
        moved = self._buffers[name]
        if moved.dtype != buffer.dtype and not buffer.is_meta:
            self._buffers[name] = buffer.to(moved.device)
    return self


def _phases_in_fp64(self: Any, x: Any, position_ids: Any) -> tuple[Any, Any]:
    """cos and sin (B, T, d) in x's dtype, for positions (B, T)."""
    import torch

    with torch.no_grad():
        pairs = self.inv_freq.shape[0]
        exponent = torch.arange(pairs, dtype=torch.float64, device=x.device) / pairs
        frequencies = self.config.rope_parameters["rope_theta"] ** -exponent
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
