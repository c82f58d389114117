"""Adding to some entries of a large vector, and reading some of them: one kernel each on a GPU.

A step of SpIEL does both to every tuned matrix, two or three times. Written with torch's indexing each takes half a
dozen passes over the positions, which together cost more than the copy of the matrix beside them.
"""

from __future__ import annotations

import torch

from core.models.fused.backend import runs_triton


def add_into(made: torch.Tensor, source: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
    """made[p] = source[p] + v for every position, the sum in fp32 and rounded once; both may be one vector.

    Args:
        made, source: (n,), of any floating types. positions: (k,) distinct. values: (k,) in fp32.
    """
    if runs_triton(made):
        from core.sparse.triton_entries import add_into as kernel

        kernel(made, source, positions, values)
        return
    places = positions.long()
    made[places] = (source[places].float() + values.float()).to(made.dtype)


def read(vector: torch.Tensor, positions: torch.Tensor, start: int, out: torch.Tensor) -> None:
    """out[i] = vector[positions[i] - start]."""
    if runs_triton(vector):
        from core.sparse.triton_entries import read as kernel

        kernel(vector, positions, start, out)
        return
    out.copy_(vector[(positions - start).long()])
