"""Rows of a text in both models' tokens, and the three Trainers that learn on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import Trainer

from apps.lm.stacked.model import Reader, llm_ids
from core.control.stacking import TASK
from core.control.stacking_trainer import IGNORE, SelfDistillMixin, TaskMixin
from core.data.dataset import EncodedDataset
from core.data.encode import EncodeStats
from core.errors import ConfigError, DataError
from core.training.trainer import SupervisedTrainer, draw_apart


@dataclass
class Row:
    """A text in the encoder's tokens and in the language model's; the number of its class; its vector, once known."""

    input_ids: list[int]
    teacher_ids: list[int]
    label: int = 0
    cut: int = 0
    straddled: bool = False
    target: torch.Tensor | None = None

    @property
    def trained(self) -> int:
        return len(self.input_ids)


def encode_rows(
    rows: Sequence[Any], tokenizer: Any, *, mode: Any, max_length: int, reader: Reader, numbers: dict[str, int]
) -> tuple[EncodedDataset, EncodeStats]:
    """Each example for both models, cut at `max_length` tokens; nothing is packed."""
    stats, found = EncodeStats(), []
    for number, example in enumerate(rows, 1):
        own, cut = reader.ids(example.text, example.lang, max_length)
        other, more = llm_ids(example.text, tokenizer, max_length)
        if not own or not other:
            raise DataError(f"row {number} has no token", field="text", got=example.text)
        row = Row(own, other, numbers.get(example.label, 0), cut + more)
        stats.add(row)  # type: ignore[arg-type]
        found.append(row)
    stats.check()
    return EncodedDataset(found, None), stats  # type: ignore[arg-type]


class StackCollator:
    """Rows padded on the right for both models. A row that only fills up a process's share does not count.

    Args:
        pads: the padding ids of the encoder's tokenizer and of the language model's.
    """

    def __init__(self, pads: tuple[int, int]) -> None:
        self.pads = pads

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        batch = {}
        for name, mask, pad in zip(("input_ids", "teacher_ids"), ("attention_mask", "teacher_mask"), self.pads):
            lines = [getattr(item, name, [pad]) for item in items]
            longest = max(map(len, lines))
            batch[name] = torch.tensor([line + [pad] * (longest - len(line)) for line in lines])
            batch[mask] = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in lines])
        batch["labels"] = torch.tensor([getattr(item, "label", IGNORE) for item in items])
        known = [getattr(item, "target", None) for item in items]
        width = next((len(target) for target in known if target is not None), 0)
        if width:
            batch["target"] = torch.stack([torch.zeros(width) if target is None else target for target in known])
        return batch


class _StackTrainer(SupervisedTrainer):
    """What the three have in common: the collator, tokens counted, and both models run as they are.

    Args:
        labels: the classes of a task that begins here. pads: as for `StackCollator`.
    """

    def __init__(self, *args: Any, labels: Sequence[str], pads: tuple[int, int], **kwargs: Any) -> None:
        if labels:
            kwargs["model"].begin_task(labels, kwargs["args"].seed)
        super().__init__(*args, **{**kwargs, "data_collator": StackCollator(pads)})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        draw_apart(self.args.seed)
        self.prepare_targets()
        return Trainer.train(self, *args, **kwargs)

    def prepare_targets(self) -> None:
        """Nothing has to be known before the first step."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._useful = self._useful + inputs["attention_mask"].sum()
        return super().training_step(model, inputs, *args, **kwargs)

    def held_out(self, dataset: Any) -> dict[str, float]:
        """The same loss over held-out rows."""
        model = self.accelerator.unwrap_model(self.model)
        training, total = model.training, 0.0
        model.eval()
        with torch.no_grad():
            for start in range(0, len(dataset), 32):
                rows = [dataset[i] for i in range(start, min(start + 32, len(dataset)))]
                inputs = self._prepare_inputs(self.data_collator(rows))
                with self.compute_loss_context_manager():
                    total += float(self.compute_loss(model, inputs)) * len(rows)
        model.train(training)
        return {"loss": total / len(dataset)}


class GeneralTrainer(SelfDistillMixin, _StackTrainer):
    """The projection and the student's adapter learn the language model's own vectors."""

    stage = 1


class TuneTrainer(TaskMixin, _StackTrainer):
    """The language model's own adapter and the head learn the task."""


class ImitationTrainer(SelfDistillMixin, _StackTrainer):
    """The student's adapter learns the vectors of the tuned language model, which are computed once a text."""

    stage = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        if not model.labels:
            raise ConfigError(
                "the language model was tuned for no task",
                where="lm.stack_task",
                hint="put a stage with method: lm.stack_tune before it",
            )
        super().__init__(*args, **kwargs)

    def prepare_targets(self) -> None:
        """All vectors at once, where every text is read more than once."""
        model = self.accelerator.unwrap_model(self.model)
        rows = getattr(self.train_dataset, "dataset", self.train_dataset).rows
        if self.args.max_steps * self.args.train_batch_size * self.args.gradient_accumulation_steps <= len(rows):
            return
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            inputs = self._prepare_inputs(self.data_collator(part))
            with self.compute_loss_context_manager():
                found = self.with_targets(model, inputs)["target"].float().cpu()
            for row, target in zip(part, found):
                row.target = target

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        bare = self.accelerator.unwrap_model(model)
        return super().compute_loss(model, self.with_targets(bare, inputs), *args, **kwargs)

    def with_targets(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if "target" in inputs:
            return inputs
        return {**inputs, "target": model.teacher(inputs["teacher_ids"], inputs["teacher_mask"], adapter=TASK)}


def trainer_of(part: Literal["general", "tune", "task"] | str) -> type:
    """The Trainer of a stage."""
    return {"general": GeneralTrainer, "tune": TuneTrainer, "task": ImitationTrainer}[part]
