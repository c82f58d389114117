"""Direct preference optimisation (Rafailov et al. 2023) on TRL's trainer, weighted by WPO (Zhou et al. 2024) if asked.

    L = −w · log σ(β · [(log π/π₀)(better) − (log π/π₀)(worse)])

over summed log-probabilities of the answers. w is 1, or for WPO the product of both answers' probabilities under the
policy, each relative to its most likely kind of answer and averaged over tokens: pairs that the policy would hardly
write count less. The reference π₀ is the model at the start of the stage.
"""

from __future__ import annotations

import copy
from typing import Any

from trl import DPOConfig, DPOTrainer

from core.training.preference.frame import Frame


class DpoTrainer(Frame, DPOTrainer):
    """TRL's trainer on rows that are ids already."""

    config_cls = DPOConfig
    shown = ("rewards/accuracies", "rewards/margins")

    def __init__(self, *, model: Any, **rest: Any) -> None:
        # A model that was built in memory has no place that TRL could load a second copy from.
        reference = None if hasattr(model, "peft_config") else copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model=model, ref_model=reference, **rest)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset
