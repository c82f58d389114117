"""Decode codes of any grid into a dense matrix on a GPU, in one pass over the planes.

Training, and products of many rows, decode a matrix and hand it to the vendor's product; this is that decoding, at the
speed of memory. The reference's tensor operations compute the same values, several passes long.
"""

from __future__ import annotations

import functools

import torch

from core.quantization import grids, scales
from core.quantization.spec import TENSOR, QuantSpec


@functools.cache
def available() -> bool:
    """Whether Triton is installed and there is a GPU."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.is_available()


def decode(tensors: dict[str, torch.Tensor], spec: QuantSpec, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """The dense matrix (N, inputs) in `dtype` of planes (N, bits, words) and what decodes them; fp32 inside."""
    from core.quantization.kernels.triton.decode_kernel import decode_planes

    planes = tensors["planes"]
    rows = planes.shape[0]
    out = torch.empty(rows, inputs, dtype=dtype, device=planes.device)
    learned = spec.grid == "learned"
    scale = zero = selector = planes
    groups, shared = 1, spec.group == TENSOR
    table = planes
    if learned:
        table = tensors["levels"].float().contiguous()
    else:
        scale = scales.load(tensors, spec).contiguous()
        groups = scale.shape[1]
        if spec.codebook:
            table = grids.tables(spec, planes.device).contiguous()
            selector = tensors.get("selector", planes)
        zero = tensors.get("zero", planes)
    kind = 2 if learned else (1 if spec.codebook else 0)
    words = planes.shape[2]
    decode_planes[(rows, -(-words // 8))](
        planes, scale, zero, selector, table, out, inputs, words, groups, -(-inputs // groups),
        0.0 if kind else grids.fixed_zero(spec), BITS=spec.bits, KIND=kind, ZERO="zero" in tensors and not learned,
        SELECT="selector" in tensors, SHARED=shared, WORDS=8,
    )  # fmt: skip
    return out
