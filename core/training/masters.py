"""AdamW over bf16 parameters that keeps what it works on in fp32.

An update smaller than 1/256 of a bf16 weight is lost when it is added there, and late in training most are. So the
weights that the optimizer changes are fp32 copies, and after every step the model gets them rounded (mixed precision
as in Micikevicius et al. 2018). A parameter costs 2 + 2 + 12 bytes with its gradient and moments, as much as one in
fp32, without the casts of every forward pass. It is any torch optimizer to those who hold it.
"""

from __future__ import annotations

from typing import Any

import torch


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on fp32 copies of its parameters.

    Args:
        groups: parameter groups as torch has them, with lr, betas, eps and weight_decay.
        fused: torch's one-kernel step.
    """

    def __init__(self, groups: list[dict[str, Any]], fused: bool = True) -> None:
        groups = [dict(group) for group in groups]
        super().__init__(groups, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})
        copies = [
            {**self._numbers(group), "params": [p.detach().clone().float() for p in group["params"]]}
            for group in self.param_groups
        ]
        self.inner = torch.optim.AdamW(copies, fused=fused)

    @staticmethod
    def _numbers(group: dict[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        groups = zip(self.param_groups, self.inner.param_groups)
        return [pair for outer, inner in groups for pair in zip(outer["params"], inner["params"])]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        for outer, inner in zip(self.param_groups, self.inner.param_groups):
            inner.update(self._numbers(outer))
        pairs = self._pairs()
        for parameter, copy in pairs:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        changed = [(p, copy) for p, copy in pairs if p.grad is not None]
        if changed:
            torch._foreach_copy_([p for p, _ in changed], [copy for _, copy in changed])
        for _, copy in pairs:
            copy.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Moments, the fp32 copies, and the groups as every torch optimizer has them."""
        found = super().state_dict()
        return {**found, "inner": self.inner.state_dict(), "copies": [copy for _, copy in self._pairs()]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the copies win over what rounding left in the parameters."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.inner.load_state_dict(state_dict["inner"])
        for (_, copy), saved in zip(self._pairs(), state_dict["copies"]):
            copy.copy_(saved)


def train_in(model: Any, params: str) -> None:
    """Trained parameters in fp32, or in bf16 with `params` "bf16"; frozen ones stay as they are."""
    dtype = torch.bfloat16 if params == "bf16" else torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
