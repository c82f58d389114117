"""Trainers of a stacked model: the student towards its teacher, and the language model towards a task (MT-LLM).

Losses are means over the rows of a step, however they are cut into micro-batches, and a checkpoint holds no base.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from core.control.stacking import TASK, unexplained
from core.errors import ConfigError
from core.objectives.losses import IGNORE


class _Stacked:
    """What Trainers of a stacked model share: losses of rows, and checkpoints without the bases."""

    def _mean_over_rows(self: Any, losses_B: torch.Tensor, inputs: dict[str, Any], count: Any) -> torch.Tensor:
        """The mean over the rows of a step, however it is cut; rows whose label is `IGNORE` do not count."""
        labels = inputs.get("labels")
        kept = torch.ones_like(losses_B) if labels is None else (labels != IGNORE).to(losses_B)
        total = (losses_B * kept).sum()
        if count is None:
            return total / kept.sum().clamp(min=1)
        return total / torch.as_tensor(count, device=total.device).clamp(min=1) * self.accelerator.num_processes

    def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds what the model saves, and so no base."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or self.args.output_dir)

    def _frozen_weights(self: Any, model: Any) -> Callable[[Path], None]:
        """The same, for a Trainer that writes beside the next steps."""
        return model.snapshot()

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        self.accelerator.unwrap_model(model or self.model).load(resume_from_checkpoint)


class SelfDistillMixin(_Stacked):
    """A Trainer whose loss is the squared distance of the student's pooled vectors from the teacher's.

    A batch holds `input_ids` and `attention_mask` in the encoder's tokens, and either `teacher_ids` and `teacher_mask`
    in the language model's (stage 1) or `target` (B, d), vectors that were computed before (stage 2). For a choice
    among texts, `spans` (B, C, T) and `teacher_spans` mark the tokens of each, and `target` is (B, C, d). `labels` (B,)
    may mark rows that do not count with `IGNORE`.
    """

    stage = 1

    def __init__(self, *args: Any, stage: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = stage or type(self).stage
        if self.stage not in (1, 2):
            raise ConfigError(f"stage {self.stage}", where="self-distillation", hint="1 or 2")
        # the second stage leaves the general projection as it is and moves the adapters alone
        self.model.let_learn(projection=self.stage == 1)
        # the Trainer then counts the labels of the whole accumulation window, where a batch has labels
        self.model_accepts_loss_kwargs = True
        self.unexplained = 0.0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        bare = model.module if hasattr(model, "module") else model
        if self.stage == 1:
            wanted = bare.teacher(inputs["teacher_ids"], inputs["teacher_mask"], inputs.get("teacher_spans"))
        else:
            wanted = inputs["target"].float()
        # through the wrapper, which averages the gradients of several processes
        found = model(inputs["input_ids"], inputs["attention_mask"], inputs.get("spans"), vectors=True)
        loss = self._mean_over_rows((found - wanted).square().flatten(1).mean(1), inputs, num_items_in_batch)
        if len(wanted) > 1:
            self.unexplained = unexplained(found.detach().flatten(0, -2), wanted.flatten(0, -2))
        return (loss, found) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "unexplained": float(self.unexplained)} if "loss" in logs else logs, *args, **kwargs)


class TaskMixin(_Stacked):
    """A Trainer that tunes the language model by itself: its task adapter and head, on text in its own tokens.

    A batch holds `teacher_ids`, `teacher_mask`, and `labels` (B,), the numbers of the classes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.model.labels:
            raise ConfigError("there is no task", where="self-distillation", hint="begin_task(labels) first")
        self.model.let_learn(TASK, head=True)
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(inputs["teacher_ids"], inputs["teacher_mask"], inputs.get("teacher_spans"), direct=True)
        losses = F.cross_entropy(logits.float(), inputs["labels"], ignore_index=IGNORE, reduction="none")
        loss = self._mean_over_rows(losses, inputs, num_items_in_batch)
        return (loss, logits) if return_outputs else loss


def __getattr__(name: str) -> Any:
    """`SelfDistillTrainer` and `TaskTrainer` over transformers' Trainer."""
    mixins = {"SelfDistillTrainer": SelfDistillMixin, "TaskTrainer": TaskMixin}
    if name in mixins:
        from transformers import Trainer

        return type(name, (mixins[name], Trainer), {})
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
