"""GPTQ: round column by column and let the columns to come make up for the error (Frantar et al. 2022).

With H = Σ x xᵀ the error of column j is spread over later columns along row j of the Cholesky factor of H⁻¹.
Columns are taken in blocks, so that most of the update is one matrix product. Ranges of a group are taken when its
first column is reached, from the weights as they have become.
"""

from __future__ import annotations

from typing import Any

import torch

from core.errors import ConfigError
from core.quantization.grids import decode, encode
from core.quantization.solvers import rtn, typesearch
from core.quantization.solvers.encoded import Encoded, decoded
from core.quantization.spec import ROW, TENSOR, QuantSpec

DAMP, BLOCK = 0.01, 128


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None, damp: float = DAMP) -> Encoded:
    """Codes of `weight` (N, K) with `stats.hessian` (K, K).

    Two-level scales are those of the whole row before the sweep: their second level needs every group's range.

    Raises:
        ConfigError: no Hessian.
    """
    if stats is None or stats.hessian is None:
        raise ConfigError("GPTQ needs second moments of the inputs", hint="quantize_model(model, spec, calib=batches)")
    weight = weight.float().clone()
    factor = inverse_factor(stats.hessian.to(weight), weight, damp)
    rows, inputs = weight.shape
    width = inputs if spec.group in (ROW, TENSOR) else spec.group
    whole = (spec.group in (ROW, TENSOR)) or spec.scale in ("int8", "double")
    finder = typesearch.solve if spec.grid == "bitmod" else rtn.solve
    params = finder(weight, spec, stats).params if whole else None
    found: list[dict[str, torch.Tensor]] = []
    codes = torch.empty(rows, inputs, dtype=torch.uint8, device=weight.device)
    current: dict[str, torch.Tensor] = {}
    one = _of_one_group(spec, width)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = torch.zeros(rows, stop - start, device=weight.device)
        for column in range(start, stop):
            if column % width == 0:
                if params is None:
                    # columns of this group that lie in later blocks do not have this block's errors yet
                    ahead = weight[:, column : column + width].clone()
                    late = max(0, column + width - stop)
                    if late:
                        ahead[:, -late:] -= errors @ factor[start:stop, stop : stop + late]
                    stored = finder(ahead, one).params
                    found.append(stored)
                    current = decoded(stored, one)
                else:
                    known = decoded(params, spec)
                    number = column // width if spec.groups(inputs) > 1 else 0
                    current = {name: value[:, number : number + 1] for name, value in known.items()}
            values = weight[:, column : column + 1]
            code = encode(values, current, one)
            codes[:, column] = code[:, 0]
            error = (values - decode(code, current, one))[:, 0] / factor[column, column]
            weight[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    if params is None:
        params = {name: torch.cat([part[name] for part in found], 1) for name in found[0]}
    return Encoded(codes, params)


def _of_one_group(spec: QuantSpec, width: int) -> QuantSpec:
    from dataclasses import replace

    return replace(spec, group=ROW)


def inverse_factor(hessian: torch.Tensor, weight: torch.Tensor, damp: float) -> torch.Tensor:
    """Upper Cholesky factor of (H + damp · mean diagonal)⁻¹. Columns of inputs that never fire are set to zero."""
    hessian = hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    weight[:, dead] = 0.0
    mean = hessian.diagonal().mean()
    for attempt in range(6):
        trial = hessian.clone()
        trial.diagonal().add_(damp * 10**attempt * mean)
        lower, failed = torch.linalg.cholesky_ex(trial)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            return torch.linalg.cholesky(inverse, upper=True)
    raise ConfigError("the second moments are not positive definite", hint="give more calibration data")
