"""Supervised training on transformers' Trainer: the loss and the order of the data are ours.

The loss of a step is the sum over its trained tokens divided by their number, over all accumulation steps and all
ranks: a gradient does not depend on how a batch was cut. Gradients are averaged by DDP, hence the factor of the world
size. The model is called without labels and without a cache; a cache would make transformers skip the mask that keeps
packed documents apart. Everything else (callbacks, optimizer, resume) is the Trainer's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from core.config.schema import BackendConfig, TrainConfig
from core.data.encode import IGNORE
from core.distributed.launch import rank, world_size
from core.models.attention import without_planning
from core.models.varlen import borders_of, packed
from core.objectives.losses import CrossEntropy, places_of, token_loss
from core.training.masters import MasterAdamW, train_in
from core.training.saving import Saving
from core.training.schedule import Scheduled
from core.training.speed import HostInputs, made_fast, recomputes_from_host


class CountingCollator:
    """A collator whose batches also say what would cost a wait for the device to find out there.

    `useful` (1,): how many tokens are not padding. `places` (N,): the positions whose next token carries loss.
    `borders` (D + 1,) and `longest`, in packed batches: where documents begin, and the longest one's length.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, items: Any) -> dict[str, Any]:
        rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
        batch = self.collator(items)
        useful = torch.tensor([sum(len(row.input_ids) for row in rows)])
        known: dict[str, Any] = {"useful": useful, "places": places_of(batch["labels"])}
        if "position_ids" in batch:
            known["borders"], known["longest"] = borders_of(batch["position_ids"])
        return {**batch, **known}


def known_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Takes out of a batch what `CountingCollator` put beside the model's inputs."""
    return {name: inputs.pop(name, None) for name in ("useful", "places", "borders", "longest")}


class EpochSampler(Sampler[int]):
    """A permutation that depends on seed and epoch alone, so that a resumed run sees the same order.

    The last `blanks` of `size` items stay where they are.
    """

    def __init__(self, size: int, seed: int, blanks: int = 0) -> None:
        self.size, self.seed, self.blanks, self.epoch = size, seed, blanks, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = self.size - self.blanks
        return iter([*torch.randperm(rows, generator=generator).tolist(), *range(rows, self.size)])


class SupervisedTrainer(Scheduled, Saving, Trainer):
    """Trainer for rows with labels.

    Args:
        train_config: the recipe's `train:`, for smoothing and schedule. backend: its `backend:`, for the switches.
        keep, mode: newest checkpoints to keep, and whether training waits while one is written (sync) or not (async).
        Other arguments are the Trainer's.
    """

    def __init__(
        self,
        *args: Any,
        train_config: TrainConfig,
        backend: BackendConfig | None = None,
        keep: int = 3,
        mode: str = "sync",
        **kwargs: Any,
    ) -> None:
        self.train_config, self.backend = train_config, backend or BackendConfig()
        train_in(kwargs.get("model", args[0] if args else None), self.backend.precision.params)
        super().__init__(*args, **kwargs)
        whole = self.backend.cross_entropy == "whole"
        self.loss = CrossEntropy("whole" if whole else "fused", train_config.label_smoothing, train_config.z_loss)
        self.set_up_saving(keep, mode)
        # the Trainer then counts the labels of the whole accumulation window and does not divide by its length
        self.model_accepts_loss_kwargs = True
        self._useful: Any = 0
        self._by_document = False
        if recomputes_from_host(self.backend, self.args.device):
            self.add_callback(HostInputs(self.args.device))

    @property
    def useful_tokens(self) -> int:
        """Tokens seen that were not padding. Kept on the device between readings, so that no step waits for it."""
        return int(self._useful)

    @useful_tokens.setter
    def useful_tokens(self, count: int) -> None:
        self._useful = count

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the switches of `backend:` on; the model is plain again afterwards."""
        draw_apart(self.args.seed)
        with made_fast(self.model, self.backend, self.args.device) as by_document:
            self._by_document = by_document
            try:
                return super().train(*args, **kwargs)
            finally:
                self._by_document = False

    # ---- loss --------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with attention_for(inputs, self.args.device):  # blocks that run again in the backward pass choose as before
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels, known = inputs.pop("labels"), known_of(inputs)
        if known["useful"] is not None and model.training:
            self._useful = self._useful + known["useful"].sum()
        borders = known["borders"] if self._by_document else None
        with attention_for(inputs, self.args.device), packed(inputs, borders, known["longest"]) as given:
            if return_outputs:
                outputs = model(**given, use_cache=False)
                total, trained = token_loss(outputs.logits, labels), (labels[:, 1:] != IGNORE).sum()
            else:
                total, trained = self.loss(model, given, labels, known["places"])
        if num_items_in_batch is None:
            loss = total / trained.clamp(min=1)
        else:
            count = torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
            loss = total / count * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Mean loss a token over the evaluation rows; memory does not grow with their number."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        loss, count = mean_loss(self.accelerator.unwrap_model(self.model), dataset, self.data_collator, self.args)
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_tokens": count}
        self.log(metrics)
        return metrics

    def held_out(self, dataset: Any) -> dict[str, float]:
        """Figures of held-out rows, for the choice of the best checkpoint."""
        model = self.accelerator.unwrap_model(self.model)
        return {"loss": mean_loss(model, dataset, self.data_collator, self.args)[0]}

    # ---- data order and optimisation ---------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return EpochSampler(len(dataset), self.args.seed, getattr(dataset, "blanks", 0))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.backend.precision.params == "bf16":
            self.optimizer = optimizer = MasterAdamW(optimizer.param_groups, self.backend.optimizer_step != "plain")
        return optimizer


def draw_apart(seed: int) -> None:
    """Let every process draw random numbers of its own: with one seed for all, dropout would hide the same entries of
    different rows. A resumed run goes on with the states of its checkpoint instead."""
    if world_size() > 1:
        torch.manual_seed(seed * 1_000_003 + rank())


def attention_for(inputs: dict[str, Any], device: torch.device) -> AbstractContextManager:
    """Padded batches, known by their mask, have a new shape at every step; packed ones do not."""
    return without_planning(device) if "attention_mask" in inputs else nullcontext()


@torch.no_grad()
def mean_loss(model: Any, dataset: Any, collator: Any, args: Any = None, batch: int = 8) -> tuple[float, int]:
    """Mean loss a trained token over `dataset`, and the number of those tokens; the model's mode is as before."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    bf16 = bool(args is not None and args.bf16) and device.type == "cuda"
    loss, total, count = CrossEntropy(), 0.0, 0
    try:
        for start in range(0, len(dataset), batch):
            items = collator([dataset[i] for i in range(start, min(start + batch, len(dataset)))])
            places = known_of(items)["places"]
            items = {name: value.to(device) for name, value in items.items()}
            labels = items.pop("labels")
            places = None if places is None else places.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16), attention_for(items, device):
                summed, trained = loss(model, items, labels, places)
            total += float(summed)
            count += int(trained)
    finally:
        model.train(training)
    return total / max(count, 1), count
