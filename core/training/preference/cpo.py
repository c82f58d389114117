"""Contrastive preference optimisation (Xu et al. 2024) on TRL's trainer: ALMA-R's third stage.

    L = −log σ(β · [log π(better) − log π(worse)]) + α · NLL(better)

with summed log-probabilities and no reference model; NLL is the mean over the better answers' tokens.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.experimental.cpo import CPOConfig, CPOTrainer

from core.training.preference.frame import Frame


class CpoTrainer(Frame, CPOTrainer):
    """TRL's trainer on rows that are ids already."""

    config_cls = CPOConfig
    shown = ("rewards/accuracies", "rewards/margins")

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

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.useful_tokens += sum(int(inputs[f"{side}_attention_mask"].sum()) for side in ("chosen", "rejected"))
        return super().training_step(model, inputs, *args, **kwargs)
