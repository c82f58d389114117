"""Whether a tensor's arithmetic runs in a Triton kernel or in its plain twin."""

from __future__ import annotations

import os
from functools import cache
from typing import Any


@cache
def has_triton() -> bool:
    """True where Triton can be imported."""
    import importlib.util

    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """True when Triton was asked to interpret its kernels on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(tensor: Any) -> bool:
    """True for a tensor on a CUDA device, and for any tensor when kernels are interpreted."""
    return has_triton() and (tensor.is_cuda or interpreted())
