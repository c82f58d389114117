"""Which attention kernels PyTorch may choose from.

On Hopper GPUs PyTorch prefers cuDNN's attention, which plans anew for every shape. Generation has a new shape at every
token and padded batches at every step: measured on an H100, the first 200 sentences took 18.6 s instead of 1.2 s, and
a training step of padded batches 325 ms instead of 40. The other kernels need no plan and are as fast afterwards.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def without_planning(device: Any) -> AbstractContextManager:
    """A context in which scaled dot-product attention on a GPU uses kernels that need no plan for a new shape."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
