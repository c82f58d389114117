"""Linear maps whose mask follows their weights, and the packed form that is served.

All weights stay in memory and learn: the forward pass uses W ⊙ M, the backward pass gives every entry of W the gradient
of its place (a straight-through estimator, Bengio et al. 2013). A branch of one extra weight for every group of inputs
(SLoRB, Huang et al. 2025) stands in for what the mask removes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import ConfigError
from core.models.linear_form import LinearForm, Semi24Linear
from core.statistics.importance import Pattern, magnitude, mask_of, wanda


class StraightThrough(torch.autograd.Function):
    """W, M → W ⊙ M, with the gradient of the product passed to all of W."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return upstream[0], None


class GroupBranch(nn.Module):
    """S P x: P (in / k, in) sums groups of k inputs, S (out, in / k) weighs the sums. P is held only when it trains."""

    def __init__(
        self, in_features: int, out_features: int, k: int, train_projection: bool, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        if in_features % k:
            raise ConfigError(
                f"groups of {k} for {in_features} inputs", where="slorb_k", hint="a divisor of the inputs"
            )
        self.k = k
        self.S = nn.Parameter(torch.zeros(out_features, in_features // k, device=device, dtype=dtype))
        self.P = None
        if train_projection:
            ones = torch.eye(in_features // k, device=device, dtype=dtype).repeat_interleave(k, 1)
            self.P = nn.Parameter(ones)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sums = x.unflatten(-1, (-1, self.k)).sum(-1) if self.P is None else F.linear(x, self.P)
        return F.linear(sums, self.S)

    def dense_weight(self) -> torch.Tensor:
        """S P (out, in)."""
        return self.S.repeat_interleave(self.k, 1) if self.P is None else self.S @ self.P


def branch_spec(branch: GroupBranch | None) -> dict[str, Any]:
    """What rebuilds a branch, as JSON data."""
    return {} if branch is None else {"slorb_k": branch.k, "train_projection": branch.P is not None}


class AdaptiveLinear(LinearForm):
    """y = x (W ⊙ M)ᵀ + S P x + b with dense masters W (out, in) and a mask M that `update` takes from them anew.

    With the metric wanda, `squares` (in,) sums x² over the training passes since the last mask.
    """

    kind = "adaptive"
    pattern: Pattern
    metric: str
    squares: torch.Tensor
    weight: Any
    mask: Any
    branch: Any

    @classmethod
    def empty(
        cls, in_features, out_features, bias=True, *, device=None, dtype=None, pattern="2:4", slorb_k=None,
        train_projection=False, metric="magnitude",
    ):  # fmt: skip
        made = cls(in_features, out_features)
        made.metric = metric
        if metric == "wanda":
            made.register_buffer("squares", torch.zeros(in_features, device=device))
        made.pattern = Pattern.parse(pattern)
        made.pattern.fits(in_features, "ast.pattern")
        made.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        made.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        made.register_buffer("mask", torch.empty(out_features, in_features, device=device, dtype=torch.bool))
        made.branch = None
        if slorb_k:
            made.branch = GroupBranch(in_features, out_features, slorb_k, train_projection, device, dtype)
        return made

    @classmethod
    def from_dense(cls, weight, bias=None, slorb_init="mean", **spec):
        made = cls.empty(
            weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype, **spec
        )
        with torch.no_grad():
            made.weight.copy_(weight)
            if bias is not None:
                made.bias.copy_(bias)
            made.update()
            if made.branch is not None:
                lost = (weight * ~made.mask).unflatten(1, (-1, made.branch.k)).sum(-1)
                if slorb_init == "xavier":
                    nn.init.xavier_uniform_(made.branch.S)
                else:
                    made.branch.S.copy_(lost / made.branch.k if slorb_init == "mean" else lost)
        return made

    def update(self) -> int:
        """Take the mask from the weights. Returns how many entries changed sides."""
        scores = magnitude(self.weight.detach())
        if self.metric == "wanda" and bool(self.squares.any()):
            scores = wanda(self.weight.detach(), self.squares)
            self.squares.zero_()
        new = mask_of(scores, self.pattern, by_row=self.metric == "wanda")
        flips = int(torch.ne(new, self.mask).sum())
        self.mask.copy_(new)
        return flips

    def forward(self, x):
        if self.metric == "wanda" and self.training:
            self.squares += x.detach().flatten(0, -2).float().square().sum(0)
        y = F.linear(x, StraightThrough.apply(self.weight, self.mask), self.bias)
        return y if self.branch is None else y + self.branch(x)

    def dense_weight(self, dtype=None):
        weight = self.weight * self.mask
        weight = weight if self.branch is None else weight + self.branch.dense_weight()
        return weight if dtype is None else weight.to(dtype)

    def describe(self):
        measured = {} if self.metric == "magnitude" else {"metric": self.metric}
        return {"pattern": str(self.pattern), **measured, **branch_spec(self.branch)}


class Semi24Slorb(LinearForm):
    """A packed 2:4 map with its branch beside it, for inference."""

    kind = "semi24_slorb"
    inner: Any
    branch: Any

    @classmethod
    def empty(
        cls, in_features, out_features, bias=True, *, device=None, dtype=None, slorb_k=16, train_projection=False
    ):
        made = cls(in_features, out_features)
        made.inner = Semi24Linear.empty(in_features, out_features, bias, device=device, dtype=dtype)
        made.branch = GroupBranch(in_features, out_features, slorb_k, train_projection, device, dtype)
        return made

    @classmethod
    def from_dense(cls, weight, bias=None, branch=None):
        made = cls(weight.shape[1], weight.shape[0])
        made.inner, made.branch = Semi24Linear.from_dense(weight, bias), branch
        return made

    @property
    def bias(self):
        return self.inner.bias

    def forward(self, x):
        return self.inner(x) + self.branch(x)

    def dense_weight(self, dtype=None):
        weight = self.inner.dense_weight() + self.branch.dense_weight()
        return weight if dtype is None else weight.to(dtype)

    def describe(self):
        return branch_spec(self.branch)
