"""Round another weight into a layer that exists, with the choices that were made for it."""

from __future__ import annotations

from typing import Any

import torch

from core.quantization.grids import encode
from core.quantization.solvers import rtn, typesearch
from core.quantization.solvers.encoded import Encoded


def solve_again(weight: torch.Tensor, layer: Any) -> Encoded:
    """Codes of `weight` (N, K) for `layer`: new ranges, its own levels, its own places of values beside the matrix."""
    spec, sparse = layer.quant, None
    if layer.extra.get("nnz"):
        rows = torch.repeat_interleave(
            torch.arange(layer.out_features, device=weight.device), layer.sparse_crow.diff().long()
        )
        places = (rows, layer.sparse_col.long())
        sparse = torch.zeros_like(weight)
        sparse[places] = weight[places]
        weight = weight.clone()
        weight[places] = 0.0
    if spec.grid == "learned":
        params = {"levels": layer.levels}
        found = Encoded(encode(weight, params, spec), {})
    else:
        found = (typesearch if spec.grid == "bitmod" else rtn).solve(weight, spec)
        params = found.params
    if sparse is not None:
        dense = Encoded(found.codes, params).values(spec)
        found.sparse = torch.zeros_like(weight)
        found.sparse[places] = (sparse - dense)[places]
    return found
