"""Learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from core.config.schema import TrainConfig


def schedule(config: TrainConfig, total: int) -> Callable[[int], float]:
    """The factor on the peak rate at optimizer step 0, 1, … of `total`.

    cosine and linear end at zero; inverse_sqrt follows Vaswani et al. (2017); wsd (warm-up, stable, decay; Hu et al.
    2024) stays at the peak and falls over the last `decay` of the steps, as 1 - √t to zero (Hägele et al. 2024).
    """
    warmup = int(config.warmup if config.warmup >= 1 else round(config.warmup * total))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, total - warmup)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if config.schedule == "linear":
            return max(0.0, 1 - done)
        if config.schedule == "inverse_sqrt":
            return math.sqrt(max(warmup, 1) / max(step, 1))
        if config.schedule == "wsd":
            return 1 - math.sqrt(min(1.0, max(0.0, 1 - (total - step) / max(1.0, config.decay * total))))
        return 1.0

    return factor


class Scheduled:
    """Mixin for a Trainer with a `train_config`: the learning rate follows the recipe."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        trainer: Any = self
        if trainer.lr_scheduler is None:
            from torch.optim.lr_scheduler import LambdaLR

            factor = schedule(trainer.train_config, num_training_steps)
            trainer.lr_scheduler = LambdaLR(optimizer or trainer.optimizer, factor)
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler
