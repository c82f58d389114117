"""Scores of weights and the masks that they give.

A score says how much a weight is worth keeping; a pattern says how many are kept where. Both are pure functions of
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.errors import ConfigError


@dataclass(frozen=True)
class Pattern:
    """Which weights of a matrix may be non-zero: `kept` of every `group` inputs, or a `sparsity` share of zeros."""

    sparsity: float
    kept: int = 0
    group: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """A pattern from "n:m" (n of m are kept) or from a share of zeros such as "0.75"."""
        kept, colon, group = str(text).partition(":")
        try:
            made = cls(1 - int(kept) / int(group), int(kept), int(group)) if colon else cls(float(text))
        except (ValueError, ZeroDivisionError):
            made = cls(-1.0)
        if not 0 < made.sparsity < 1 or made.kept < 0:
            raise ConfigError(
                f"'{text}' is no pattern of zeros", hint='"2:4" keeps two of four, "0.75" leaves a quarter'
            )
        return made

    def fits(self, inputs: int, where: str) -> None:
        """Raises `ConfigError` where the inputs do not divide into groups."""
        if self.group and inputs % self.group:
            raise ConfigError(
                f"{inputs} inputs in groups of {self.group}",
                where=where,
                hint="choose another pattern, or leave it out",
            )

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}" if self.group else f"{self.sparsity:g}"


def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """|w|."""
    return weight.abs().float()


def wanda(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """|w_ij| ‖x_j‖ (Sun et al. 2024), for weight (out, in) and Σ x_j² (in,)."""
    return weight.abs().float() * squares.float().sqrt()


def mask_of(scores: torch.Tensor, pattern: Pattern, by_row: bool = False) -> torch.Tensor:
    """(out, in) boolean, True where a weight is kept: the highest scores, exactly as many as the pattern says.

    Args:
        by_row: without groups, as many in every row (Wanda) instead of in the whole matrix.
    """
    if pattern.group:
        grouped = scores.unflatten(-1, (-1, pattern.group))
        best = grouped.topk(pattern.kept, dim=-1).indices
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True).flatten(-2)
    table = scores if by_row else scores.reshape(1, -1)
    gone = int(pattern.sparsity * table.shape[1])
    worst = table.argsort(dim=-1, stable=True)[:, :gone]
    return torch.ones_like(table, dtype=torch.bool).scatter_(-1, worst, False).view_as(scores)
