"""Contrastive preference optimisation (Xu et al. 2024) on TRL's trainer: ALMA-R's third stage.

    L = −log σ(β · [log π(better) − log π(worse)]) + α · NLL(better)

with summed log-probabilities and no reference model; NLL is the mean over the better answers' tokens.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.experimental.cpo import CPOConfig, CPOTrainer

from core.training.preference.pairwise import Pairwise


class CpoTrainer(Pairwise, CPOTrainer):
    """TRL's trainer on rows that are ids already."""

    config_cls = CPOConfig
    shown = ("rewards/accuracies", "rewards/margins")
    fuses_head = False

    def tokenize_row(self, feature: dict[str, list[int]], model: Any = None) -> dict[str, list[int]]:
        """The columns that TRL's collator pads, from our ids."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            answer = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        return row

    def counts(self, inputs: dict[str, Any]) -> tuple[int, Any]:
        better = inputs["chosen_labels"]
        return len(better), (better[:, 1:] != -100).sum()

    def get_batch_loss_metrics(self, model: Any, batch: dict[str, Any], train_eval: Any = "train") -> Any:
        pairs, tokens = self.shares(batch)
        weight = self.cpo_alpha
        self.cpo_alpha = weight * tokens / pairs
        try:
            loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        finally:
            self.cpo_alpha = weight
        return loss * pairs, metrics
