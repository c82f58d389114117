"""The options of sparse methods, as a recipe writes them.

They stand here and not beside the methods so that a recipe is checked without torch. What an option means for the
mathematics is told by the method that it configures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config.schema import key


@dataclass
class SpielOptions:
    """Sparse fine-tuning with a moving support (Ansell et al. 2024)."""

    density: float = key(0.01, "share of the target weights that is tuned", above=0, most=1)
    num_tunable_weights: int | None = key(None, "number of tuned weights, instead of density", least=1)
    selection: Literal["ag", "ma", "random", "grad_once"] = key(
        "ag", "what a new entry is chosen by; random and grad_once keep one support"
    )
    reselection_steps: int = key(20, "optimizer steps from one reselection to the next", least=2)
    accumulation_steps: int = key(5, "steps whose gradients are summed before one (ag)", least=1)
    rate_policy: Literal["linear", "cosine", "constant"] = key("linear", "how the replaced share falls")
    initial_rate: float = key(0.2, "share replaced at the start; the first reselection replaces all", above=0, most=1)
    apply: Literal["add", "separate"] = key("add", "round W + v to the base's format, or add a product of its own")


@dataclass
class GreenOptions:
    """Full fine-tuning for a share of its FLOPs (Huang et al. 2024, GreenTrainer)."""

    rho: float = key(0.5, "FLOPs of a step over those of full training", above=0, most=1)
    interval: int = key(100, "optimizer steps from one choice of tensors to the next", least=1)
    units: int = key(1000, "steps in which the budget is divided", least=10)
