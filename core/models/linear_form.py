"""Other forms of one linear map: the same function of x, its weight stored or trained differently.

A form is made from a dense weight (`from_dense`) or as an empty shell that a state dict fills (`empty`), says what it
is as plain data (`describe`), and gives the dense weight that it stands for. Forms live in a registry under their
kind, so that an edited model can be rebuilt from its manifest; kinds of other rooms are registered as text and
imported when they are needed.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from core.config.registry import Registry
from core.errors import ConfigError, MergeError, UnsupportedError

FORMS: Registry[str] = Registry("linear form")


class LinearForm(nn.Module):
    """y (…, out) = x (…, in) Wᵀ + b with W given by `dense_weight`.

    Subclasses set `kind` and hold W in their own parameters and buffers; `bias` (out,) or None is common to all.
    """

    kind: ClassVar[str]

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    @abstractmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
        **spec: Any,
    ) -> LinearForm:
        """The form without values, also on the meta device; `describe()` of a form is the `spec` of its like."""

    @classmethod
    @abstractmethod
    def from_dense(cls, weight: torch.Tensor, bias: torch.Tensor | None = None, **spec: Any) -> LinearForm:
        """The form of W (out, in), exact or the nearest that the spec allows."""

    @abstractmethod
    def dense_weight(self, dtype: Any = None) -> torch.Tensor:
        """W (out, in)."""

    def set_dense_weight(self, weight: torch.Tensor) -> None:
        """Take over W where the form can hold it exactly, else `MergeError`."""
        raise MergeError(
            f"a {self.kind} map cannot take an arbitrary weight", hint="merge before the map is brought into this form"
        )

    def describe(self) -> dict[str, Any]:
        """What `empty` needs besides sizes, as JSON data."""
        return {}

    @property
    def spec(self) -> str:
        """The form as a recipe would name it."""
        return ":".join([self.kind, *(f"{name}={value}" for name, value in self.describe().items())])

    def flops(self, tokens: int) -> int:
        """Multiplications and additions of one forward pass."""
        return 2 * tokens * self.in_features * self.out_features

    def storage_bytes(self) -> int:
        """Bytes of all tensors that stand for W; the bias is not counted."""
        held = [t for name, t in [*self.named_parameters(), *self.named_buffers()] if name != "bias"]
        return sum(t.numel() * t.element_size() for t in held)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.spec}"


def register_form(kind: str, place: str) -> None:
    """Make a form known by the "module:class" that implements it."""
    FORMS.register(kind)(place)


def form_class(kind: str) -> type[LinearForm]:
    """The class of a kind. Raises `ConfigError` for an unknown one, naming the nearest."""
    module, _, name = FORMS.get(kind).partition(":")
    return getattr(importlib.import_module(module), name)


for _kind, _place in {
    "masked": "core.models.linear_form:MaskedLinear",
    "semi24": "core.models.linear_form:Semi24Linear",
    "lowrank": "core.models.linear_form:LowRankLinear",
    "adaptive": "core.sparse.ast_linear:AdaptiveLinear",
    "semi24_slorb": "core.sparse.ast_linear:Semi24Slorb",
}.items():
    register_form(_kind, _place)


class MaskedLinear(LinearForm):
    """W with entries held at zero by a boolean `mask`, True where an entry lives.

    Args of `from_dense`: mask (out, in), default the non-zero entries of the weight. The gradient is masked as well, so
    a dead entry has none. Optimizers with decay or momentum can still move it: see `core.sparse`.
    """

    kind = "masked"

    @classmethod
    def empty(cls, in_features, out_features, bias=True, *, device=None, dtype=None):
        made = cls(in_features, out_features)
        made.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        made.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        made.register_buffer("mask", torch.empty(out_features, in_features, device=device, dtype=torch.bool))
        return made

    @classmethod
    def from_dense(cls, weight, bias=None, mask=None):
        made = cls.empty(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            made.mask.copy_(weight != 0 if mask is None else mask)
            made.weight.copy_(weight * made.mask)
            if bias is not None:
                made.bias.copy_(bias)
        return made

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)

    def dense_weight(self, dtype=None):
        weight = self.weight * self.mask
        return weight if dtype is None else weight.to(dtype)

    def set_dense_weight(self, weight):
        if bool((weight[~self.mask] != 0).any()):
            raise MergeError("the weight has values where the mask holds zeros", hint="merge, then prune again")
        with torch.no_grad():
            self.weight.copy_(weight)

    @property
    def density(self) -> float:
        """Share of entries that live."""
        return float(self.mask.float().mean())


class LowRankLinear(LinearForm):
    """W = U V with V (rank, in) applied first: two ordinary linear maps `v` and `u`, which adapters may target.

    `from_dense` takes the truncated singular value decomposition, its singular values shared between the factors, which
    is the nearest W of that rank in the Frobenius norm (Eckart and Young 1936).
    """

    kind = "lowrank"

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        if not 1 <= rank <= min(in_features, out_features):
            raise ConfigError(
                f"rank {rank} of a {out_features} × {in_features} map", hint=f"1 to {min(in_features, out_features)}"
            )
        self.rank = rank

    @classmethod
    def empty(cls, in_features, out_features, bias=True, *, device=None, dtype=None, rank=1):
        made = cls(in_features, out_features, rank)
        made.v = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        made.u = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)
        return made

    @classmethod
    def from_dense(cls, weight, bias=None, rank=1):
        made = cls.empty(
            weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype, rank=rank
        )
        u, s, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        root = s[:rank].sqrt()
        with torch.no_grad():
            made.u.weight.copy_(u[:, :rank] * root)
            made.v.weight.copy_(root[:, None] * v[:rank])
            if bias is not None:
                made.u.bias.copy_(bias)
        return made

    @property
    def bias(self):
        return self.u.bias

    def forward(self, x):
        return self.u(self.v(x))

    def dense_weight(self, dtype=None):
        weight = self.u.weight @ self.v.weight
        return weight if dtype is None else weight.to(dtype)

    def describe(self):
        return {"rank": self.rank}

    def flops(self, tokens):
        return 2 * tokens * self.rank * (self.in_features + self.out_features)

    def storage_bytes(self):
        return sum(w.numel() * w.element_size() for w in (self.u.weight, self.v.weight))


class Semi24Linear(LinearForm):
    """W with two non-zeros in each group of four inputs, packed for the sparse tensor cores; for inference.

    The packed tensor is torch's own and needs CUDA and a half-precision dtype. Elsewhere the same values stand in an
    ordinary tensor, so the form can be made, saved and tested on a CPU. In a state dict it is always dense.
    """

    kind = "semi24"

    @classmethod
    def empty(cls, in_features, out_features, bias=True, *, device=None, dtype=None):
        if in_features % 4:
            raise ConfigError(f"2:4 sparsity needs inputs in groups of four, the map has {in_features}")
        made = cls(in_features, out_features)
        made.register_buffer("weight", torch.empty(out_features, in_features, device=device, dtype=dtype))
        made.register_buffer("bias", torch.empty(out_features, device=device, dtype=dtype) if bias else None)
        return made

    @classmethod
    def from_dense(cls, weight, bias=None):
        made = cls.empty(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
        kept = (weight.unflatten(1, (-1, 4)) != 0).sum(-1)
        if bool((kept > 2).any()):
            raise ConfigError(
                "the weight has more than two non-zeros in a group of four", hint="prune it with pattern 2:4 first"
            )
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
        return made

    def pack(self) -> Semi24Linear:
        """Bring the weight into the packed layout, in place. Raises `UnsupportedError` where the device has none."""
        if not self.weight.is_cuda or self.weight.dtype not in (torch.float16, torch.bfloat16):
            raise UnsupportedError(
                f"2:4 tensor cores need a CUDA device and half precision, this weight is {self.weight.dtype} on "
                f"{self.weight.device}",
                hint="the unpacked form computes the same",
            )
        self.weight = torch.sparse.to_sparse_semi_structured(self.weight)
        return self

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def dense_weight(self, dtype=None):
        weight = self.weight.to_dense() if self.packed else self.weight
        return weight if dtype is None else weight.to(dtype)

    @property
    def packed(self) -> bool:
        """Whether the weight is in the layout of the sparse tensor cores."""
        return isinstance(self.weight, torch.sparse.SparseSemiStructuredTensor)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.dense_weight()

    def flops(self, tokens):
        return super().flops(tokens) // 2

    def storage_bytes(self):
        """Packed: half of the values, and two bits of position for each."""
        values = self.weight.numel() // 2
        size = torch.finfo(self.weight.dtype).bits // 8
        return values * size + values // 4 if self.packed else 2 * values * size
