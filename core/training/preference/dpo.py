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

from core.training.preference.pairwise import Pairwise


class DpoTrainer(Pairwise, DPOTrainer):
    """TRL's trainer on rows that are ids already."""

    config_cls = DPOConfig
    shown = ("rewards/accuracies", "rewards/margins")

    def __init__(self, *, model: Any, **rest: Any) -> None:
        # A model that was built in memory has no place that TRL could load a second copy from.
        reference = None if hasattr(model, "peft_config") else copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model=model, ref_model=reference, **rest)
        self._weights = list(self.loss_weights)

    def counts(self, inputs: dict[str, Any]) -> tuple[int, Any]:
        better = inputs["completion_mask"].chunk(2)[0]
        return len(better), better[:, 1:].sum()

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        pairs, tokens = self.shares(inputs)
        shares = [tokens if kind == "sft" else pairs for kind in self.loss_types]
        self.loss_weights = [weight * share for weight, share in zip(self._weights, shares)]
        return super()._compute_loss(model, inputs, return_outputs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset
