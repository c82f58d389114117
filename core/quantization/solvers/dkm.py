"""eDKM: k-means as a layer, trained through its own assignments (Cho et al. 2022, DKM; Cho et al. 2023, eDKM).

Soft assignments A = softmax(−(w − c)²/τ) and levels c = Σ A w / Σ A are iterated, and W̃ = A c is multiplied with. A
16-bit weight has at most 65,536 values, so all rounds run on a table of distinct values with their counts, with the
same result: memory is O(distinct · levels) and two bytes an entry, in place of O(entries · levels). The gradient of an
entry is g·φ(u) + ψ(u): its own value moving among the levels, and the levels moving with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.quantization.solvers.encoded import Encoded
from core.quantization.solvers.kmeans import cluster
from core.quantization.spec import QuantSpec

ROUNDS, TOLERANCE = 5, 1e-5


def soft_levels(values: torch.Tensor, counts: torch.Tensor, levels: torch.Tensor, tau: float) -> torch.Tensor:
    """Levels (k,) after the rounds, from values (U,) that stand `counts` (U,) times each."""
    for _ in range(ROUNDS):
        share = assignments(values, levels, tau) * counts[:, None]
        # a level that nothing is assigned to stays where it is
        mass = share.sum(0)
        moved = torch.where(mass > 0, (share * values[:, None]).sum(0) / mass.clamp_min(1e-30), levels)
        done = bool((moved - levels).abs().max() <= TOLERANCE * levels.abs().max())
        levels = moved
        if done:
            break
    return levels


def assignments(values: torch.Tensor, levels: torch.Tensor, tau: float) -> torch.Tensor:
    """softmax over levels, (U, k)."""
    return (-(values[:, None] - levels[None]).square() / tau).softmax(1)


class SoftKMeans(torch.autograd.Function):
    """W̃ of a weight of 16-bit values, by its table of distinct values.

    apply(weight (N, K), levels (k,), tau) → (W̃ as weight, final levels). Levels get no gradient: they start the rounds.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, levels: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        work = torch.float64 if weight.dtype == torch.float64 else torch.float32
        distinct, index, counts = weight.detach().unique(return_inverse=True, return_counts=True)
        values, counts = distinct.to(work), counts.to(work)
        final = soft_levels(values, counts, levels.to(work), tau)
        table = assignments(values, final, tau) @ final
        small = torch.uint16 if values.numel() <= 65536 else torch.int64
        ctx.save_for_backward(values, counts, levels.to(work, copy=True), index.to(small))
        ctx.tau = tau
        ctx.mark_non_differentiable(final)
        return table[index].to(weight.dtype), final

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:  # type: ignore[override]
        values, counts, levels, index = ctx.saved_tensors
        index = index.to(torch.int64)
        summed = torch.zeros_like(values).index_add_(0, index.flatten(), grad.flatten().to(values))
        with torch.enable_grad():
            own, moving = values.clone().requires_grad_(), values.clone().requires_grad_()
            final = soft_levels(moving, counts, levels, ctx.tau)
            table = assignments(own, final, ctx.tau) @ final
            (phi,) = torch.autograd.grad(table.sum(), own, retain_graph=True)
            (psi,) = torch.autograd.grad(table, moving, summed)
        result = grad.to(values) * phi[index] + (psi / counts)[index]
        return result.to(grad.dtype), None, None


class DkmLinear(nn.Linear):
    """A linear map that trains its weight through soft k-means with 2**bits levels.

    The temperature follows the levels: half their mean squared gap, times `heat`, which a callback may anneal.
    """

    levels: torch.Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, quant: QuantSpec, **where: Any):
        super().__init__(in_features, out_features, bias, **where)
        self.quant, self.heat = quant, 1.0
        self.extra: dict[str, Any] = {"latent": True}
        self.register_buffer("levels", torch.zeros(2**quant.bits, dtype=torch.float32, device=where.get("device")))

    def start(self) -> None:
        """Levels by exact k-means of the weight."""
        with torch.no_grad():
            flat = self.weight.float().reshape(1, -1)
            found = cluster(flat, torch.ones_like(flat), 2**self.quant.bits)[0]
            self.levels.copy_(F.pad(found, (0, self.levels.numel() - found.numel()), value=float(found[-1])))

    @property
    def tau(self) -> float:
        """Temperature, in squared units of the weight."""
        return max(1e-12, 0.5 * self.heat * float(self.levels.diff().square().mean()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dense_weight(x.dtype), self.bias)

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """W̃ (out, in)."""
        weight, final = SoftKMeans.apply(self.weight.to(torch.bfloat16), self.levels, self.tau)
        if self.training:
            self.levels.copy_(final.sort().values.float())
        return weight if dtype is None else weight.to(dtype)

    def set_dense_weight(self, weight: torch.Tensor) -> None:
        """Take W as the latent weight and find its levels."""
        with torch.no_grad():
            self.weight.copy_(weight)
        self.start()

    @property
    def spec(self) -> str:
        return str(self.quant)

    def storage_bytes(self) -> int:
        """Bytes of the latent weight."""
        return self.weight.numel() * self.weight.element_size()


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Hard assignment to `stats.levels`, or to the exact k-means levels of the weight where there are none."""
    from core.quantization.grids import encode

    flat = weight.float().reshape(1, -1)
    given = getattr(stats, "levels", None)
    levels = cluster(flat, torch.ones_like(flat), 2**spec.bits) if given is None else given.view(1, -1)
    levels = F.pad(levels.float(), (0, 2**spec.bits - levels.shape[1]), value=float(levels[0, -1])).to(torch.float16)
    return Encoded(encode(weight, {"levels": levels.float()}, spec), {"levels": levels})


def make_trainable(model: Any, spec: QuantSpec, skip: Any = ()) -> Any:
    """`model` with a `DkmLinear` in place of every linear map but the head."""
    from core.quantization.quantize import find_targets

    for name, part in find_targets(model, skip).items():
        made = DkmLinear(
            part.in_features, part.out_features, part.bias is not None, quant=spec, device=part.weight.device,
            dtype=part.weight.dtype,
        )  # fmt: skip
        made.weight, made.bias = part.weight, part.bias
        made.start()
        model.set_submodule(name, made)
    return model


def pack(model: Any) -> Any:
    """`model` with hard assignments in packed layers in place of those that train."""
    from core.quantization.linear import QuantizedLinear
    from core.quantization.quantize import Stats

    for name, part in list(model.named_modules()):
        if isinstance(part, DkmLinear):
            with torch.no_grad():
                encoded = solve(part.weight, part.quant, Stats(levels=part.levels))
                model.set_submodule(name, QuantizedLinear.from_encoded(encoded, part.quant, part.bias))
    return model
