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
    grad_mode: Literal["tiles", "sddmm"] = key("tiles", "pick entries of dyᵀx, or make each by itself, for very few")


@dataclass
class GreenOptions:
    """Full fine-tuning for a share of its FLOPs (Huang et al. 2024, GreenTrainer)."""

    rho: float = key(0.5, "FLOPs of a step over those of full training", above=0, most=1)
    interval: int = key(100, "optimizer steps from one choice of tensors to the next", least=1)
    units: int = key(1000, "steps in which the budget is divided", least=10)
    flops: Literal["analytic", "measured"] = key(
        "analytic", "costs from the shapes, or from torch's count of the model as it runs"
    )
    scope: str | list[str] = key("all", "tensors that may be chosen: all, blocks, or parts of their names")


@dataclass
class PruneOptions:
    """One-shot pruning, then fine-tuning with fixed masks towards the dense model (Kurtic et al. 2023, SquareHead)."""

    pattern: str = key("0.5", 'share of zeros such as "0.75", or n of m kept such as "2:4"')
    method: Literal["magnitude", "wanda", "sparsegpt"] = key("sparsegpt", "what decides which weights go")
    ce: float = key(1.0, "weight of the cross-entropy", least=0)
    kl: float = key(0.0, "weight of the divergence from the dense model's logits", least=0)
    hidden: float = key(1.0, "weight of the distance of block outputs, SquareHead", least=0)
    temperature: float = key(1.0, "of the divergence", above=0)
    rows: int = key(128, "rows of training text to calibrate on", least=1)
    length: int = key(512, "tokens a row", least=2)


@dataclass
class AstOptions:
    """Training into a sparse model with masks that follow the weights (Huang et al. 2025, Adaptive Sparse Trainer)."""

    pattern: str = key("2:4", 'n of m kept, or a share of zeros such as "0.5"')
    metric: Literal["magnitude", "wanda"] = key(
        "magnitude", "what a weight is kept for: its size, or that times the size of its input since the last mask"
    )
    update_every: int = key(10, "optimizer steps from one mask to the next", least=1)
    decay: float = key(6e-5, "decay of weights outside the mask, at its full height", least=0)
    ramp_steps: int = key(10_000, "steps over which that decay rises", least=1)
    slorb_k: int | None = key(None, "inputs that share one extra weight; null leaves the branch out", least=2)
    slorb_init: Literal["mean", "sum", "xavier"] = key("mean", "how the branch starts")
    train_projection: bool = key(False, "also train how the branch sums its inputs")
    ce: float = key(0.33, "weight of the cross-entropy", least=0)
    kl: float = key(0.67, "weight of the divergence from the dense model's logits", least=0)
    temperature: float = key(2.0, "of the divergence", above=0)


@dataclass
class WeLoreOptions:
    """Low-rank weights where the spectrum allows it, trained; the rest stays and is frozen (Jaiswal et al. 2024)."""

    err: float = key(0.5, "share of all ranks to remove", above=0, most=0.99)
    lrc_rule: Literal["half", "breakeven"] = key("half", "low-rank below half of the rank, or where it saves weights")
    train: Literal["lowrank", "all"] = key("lowrank", "train the low-rank weights only, or everything")
    cache: str | None = key(None, "a safetensors file that keeps the singular values from one run to the next")
