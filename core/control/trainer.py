"""The alignment of branches as a part of the training loss, over any Trainer."""

from __future__ import annotations

from typing import Any

import torch

from core.control.expand import branch_weights, sidecars
from core.control.options import ControlConfig
from core.models.blocks.sidecar import Alignment
from core.objectives.padding import tokens_that_count
from core.objectives.partly import PartlyQuantized


class ControlTrainerMixin(PartlyQuantized):
    """A Trainer whose loss is its own plus the mean distance of the branches, over tokens that are not padding.

    The mean is one over all tokens of a step, however they are cut into micro-batches and spread over processes. The
    distance and the weight of each new branch are logged beside the loss.
    """

    step_tokens: Any = None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """As the Trainer's; also counts the tokens of the step."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.as_tensor(sum(_count(batch) for batch in batches), device=device)
        self.step_tokens = self.accelerator.gather(count).sum()
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with Alignment(tokens_that_count(inputs)) as terms:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return found
        loss, outputs = found if return_outputs else (found, None)
        distance = terms.loss().to(loss.device)
        self.last_distance = distance.detach()
        if self.step_tokens is not None:
            # what this micro-batch adds to the mean; processes are averaged, and so are losses that are not sums
            micro = 1 if num_items_in_batch is not None else self.current_gradient_accumulation_steps
            share = _count(inputs) / self.step_tokens.clamp(min=1)
            distance = distance * share.to(loss.device) * self.accelerator.num_processes * micro
        loss = loss + distance
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and getattr(self, "last_distance", None) is not None:
            logs = {**logs, "alignment": float(self.last_distance)}
            model = self.accelerator.unwrap_model(self.model)
            if all(block.merge.kind in ("lerp", "slerp", "proj", "prog") for block in sidecars(model).values()):
                logs |= {f"branch_weight/{layer}": round(w, 4) for layer, w in branch_weights(model).items()}
        super().log(logs, *args, **kwargs)


def _count(inputs: dict[str, Any]) -> Any:
    mask = tokens_that_count(inputs)
    return inputs["input_ids"].numel() if mask is None else mask.sum()


def hook(trainer_cls: type, model: Any, options: ControlConfig) -> tuple[type, list[Any]]:
    """The Trainer of a stage on an expanded model."""
    return type(f"Control{trainer_cls.__name__}", (ControlTrainerMixin, trainer_cls), {}), []
