"""What a solver returns, and the two steps that every solver ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from core.quantization import scales
from core.quantization.grids import decode
from core.quantization.spec import QuantSpec


@dataclass
class Encoded:
    """Codes of a matrix, what decodes them, and what was found on the way.

    Args:
        codes: uint8 (N, K). params: the stored tensors of the grid (`scale`, `zero`, `levels`, …).
        sparse: values kept beside the matrix, dense (N, K) with zeros elsewhere, or None.
        notes: chosen settings for the report.
    """

    codes: torch.Tensor
    params: dict[str, torch.Tensor]
    sparse: torch.Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def values(self, spec: QuantSpec) -> torch.Tensor:
        """The fp32 matrix (N, K) that is stood for, values beside it included."""
        dense = decode(self.codes, decoded(self.params, spec), spec)
        return dense if self.sparse is None else dense + self.sparse


def decoded(params: dict[str, torch.Tensor], spec: QuantSpec) -> dict[str, torch.Tensor]:
    """Stored params with their scales in fp32, as `grids.decode` takes them."""
    if spec.grid == "learned":
        return params
    return {**{n: p for n, p in params.items() if n in ("zero", "selector")}, "scale": scales.load(params, spec)}
