"""Optimizers for entries that come and go: each entry has its own age, or only rows and columns have a memory.

`SpielAdamW` is AdamW (Loshchilov and Hutter 2019) whose bias correction counts the updates that an entry has seen, so
that one grown late is corrected as if it were new. `SpielSM3` keeps one accumulator a row and one a column (Anil et al.
2019, SM3-II), whose products also say where a new entry would matter. Dense parameters beside the entries are ordinary:
all of them of one age, or with an accumulator each.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from core.errors import ConfigError


class SpielAdamW(torch.optim.Optimizer):
    """AdamW with an age for each entry.

    State of a parameter: exp_avg, exp_avg_sq and age, all of its shape; age () for parameters of a group with
    `per_entry` false. Decay is decoupled and pulls the values, hence the weights, towards the pretrained ones.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "per_entry": True}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (b1, b2) = self.state[parameter], group["betas"]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
            like = parameter if group["per_entry"] else parameter.new_zeros(())
            state["age"] = torch.zeros_like(like, dtype=torch.float32)
        age = state["age"].add_(1)
        first = state["exp_avg"].lerp_(gradient, 1 - b1)
        second = state["exp_avg_sq"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        # (1 - βᵃ) as -expm1(a ln β): exact for young entries
        scale = (age * _log(b2)).expm1_().neg_()
        denominator = (second / scale).sqrt_().add_(group["eps"])
        scale = (age * _log(b1)).expm1_().neg_()
        parameter.sub_((first / scale).div_(denominator).mul_(group["lr"]).to(parameter.dtype))

    @torch.no_grad()
    def replace(
        self, parameter: torch.Tensor, slots: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, age: float,
        order: torch.Tensor,
    ) -> None:  # fmt: skip
        """Give the entries at `slots` moments as if they had seen `age` steps, then sort all by `order`.

        Args:
            mean, square: (len(slots),) mean of the gradient and of its square over those steps.
        """
        state = self.state.get(parameter)
        if not state:
            return
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        b1, b2 = group["betas"]
        state["exp_avg"][slots] = mean * (1 - b1**age)
        state["exp_avg_sq"][slots] = square * (1 - b2**age)
        state["age"][slots] = age
        for name in ("exp_avg", "exp_avg_sq", "age"):
            state[name] = state[name][order]


class SpielSM3(torch.optim.Optimizer):
    """SM3-II over the tuned entries of matrices.

    u = min(r_i, c_j) + g²; v ← v - lr g / √(u + eps); r_i and c_j grow to the largest u of their row and column.

    Args:
        layers: parameter → (layer, adapter name), for parameters that are entries of a matrix.
    """

    def __init__(
        self, params: Any, layers: dict[torch.Tensor, tuple[Any, str]], lr: float = 1e-3, eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        self._layers = {id(parameter): found for parameter, found in layers.items()}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    second = self._accumulated(parameter, parameter.grad.float())
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    change = parameter.grad.float() / (second + group["eps"]).sqrt_()
                    parameter.sub_(change.mul_(group["lr"]).to(parameter.dtype))
        return loss

    def _accumulated(self, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """u of every entry, with the accumulators moved on."""
        state, found = self.state[parameter], self._layers.get(id(parameter))
        if found is None:
            if not state:
                state["squares"] = torch.zeros_like(parameter, dtype=torch.float32)
            return state["squares"].addcmul_(gradient, gradient).clone()
        layer, name = found
        if not state:
            state["rows"] = torch.zeros(layer.out_features, device=parameter.device)
            state["columns"] = torch.zeros(layer.in_features, device=parameter.device)
        row, column = layer.places(name)
        second = torch.minimum(state["rows"][row], state["columns"][column]).addcmul_(gradient, gradient)
        state["rows"].scatter_reduce_(0, row, second, "amax")
        state["columns"].scatter_reduce_(0, column, second, "amax")
        return second

    def accumulators(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(r, c) of an entry vector's matrix; None before the first step."""
        state = self.state.get(parameter)
        return (state["rows"], state["columns"]) if state else None


def _log(beta: float) -> float:
    if not 0 < beta < 1:
        raise ConfigError(f"beta {beta}", where="SpielAdamW", hint="between 0 and 1")
    return math.log(beta)
