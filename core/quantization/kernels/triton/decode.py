"""Decode codes of any grid into a dense matrix on a GPU, in one pass over the planes.

Training, and products of many rows, decode a matrix and hand it to the vendor's product; this is that decoding, at the
speed of memory. The reference's tensor operations compute the same values, several passes long.
"""

from __future__ import annotations

import functools

import torch

from core.quantization import grids, scales
from core.quantization.packing import WORD
from core.quantization.spec import TENSOR, QuantSpec

WORDS = 32


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
    rows, words = planes.shape[0], planes.shape[2]
    out = torch.empty(rows, inputs, dtype=dtype, device=planes.device)
    learned = spec.grid == "learned"
    kind = 2 if learned else int(spec.codebook)
    groups = 1 if learned else tensors["scale"].shape[1]
    width = -(-inputs // groups)
    table = planes
    if learned:
        table = tensors["levels"]
    elif spec.codebook:
        table = grids.tables(spec, planes.device)
    double = spec.scale == "double" and not learned
    decode_planes[(rows, -(-words // WORDS))](
        planes, tensors.get("scale", planes), tensors.get("scale2", planes), tensors.get("scale_offset", planes),
        scales.dynamic_tree(planes.device) if double else planes, tensors.get("zero", planes),
        tensors.get("selector", planes), table, out, inputs, words, groups, width,
        0.0 if kind else grids.fixed_zero(spec), BITS=spec.bits, KIND=kind, ZERO="zero" in tensors,
        SELECT="selector" in tensors, SHARED=spec.group == TENSOR,
        FORMAT=2 if double else int(spec.scale == "int8" and not learned), BLOCK=scales.DOUBLE_BLOCK,
        # a product and a sum stay two roundings, as the definition has them
        WHOLE=width % WORD == 0, WORDS=WORDS, enable_fp_fusion=False,
    )  # fmt: skip
    return out
