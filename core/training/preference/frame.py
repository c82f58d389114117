"""What TRL's trainers need to run as a stage of a recipe.

A stage constructs every trainer in the same way and its callbacks read the same attributes. TRL's trainers take a
configuration class of their own, a tokenizer, and a `datasets.Dataset`; `Frame` translates. The schedule, the order of
the data and the checkpoints are those of every other stage.

TRL computes the language-model head itself, from `get_output_embeddings().weight`, and never calls the module: whatever
hangs on the head would be left out silently, so such a model is refused here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from core.config.schema import BackendConfig, TrainConfig
from core.errors import ConfigError
from core.training.saving import Saving
from core.training.schedule import Scheduled
from core.training.trainer import EpochSampler

KEPT_BY_THE_FRAME = ("remove_unused_columns", "label_names", "do_train", "do_eval", "do_predict")


class Frame(Scheduled, Saving):
    """Mixin: `class DpoTrainer(Frame, trl.DPOTrainer)`.

    Attributes:
        config_cls: TRL's configuration class. shown: figures besides the loss that `held_out` reports.
    """

    config_cls: ClassVar[type]
    shown: ClassVar[tuple[str, ...]] = ()
    lr_scheduler: Any

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        tokenizer: Any,
        options: dict[str, Any],
        callbacks: list[Any] | None = None,
        train_config: TrainConfig,
        backend: BackendConfig | None = None,
        keep: int = 3,
        mode: str = "sync",
        data_collator: Any = None,
        **more: Any,
    ) -> None:
        refuse_special_heads(model)
        import datasets

        datasets.disable_progress_bars()
        self.train_config, self.backend = train_config, backend or BackendConfig()
        super().__init__(  # type: ignore[call-arg]
            model=model,
            args=translated(args, self.config_cls, options),
            train_dataset=train_dataset.to_datasets(),
            eval_dataset=eval_dataset.to_datasets() if eval_dataset is not None else None,
            processing_class=tokenizer,
            callbacks=callbacks,
            **more,
        )
        self.set_up_saving(keep, mode)
        self.useful_tokens = 0

    def _send_telemetry(self) -> None:
        """TRL reports its use to a server unless told otherwise; graft sends nothing."""

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return EpochSampler(len(dataset), self.args.seed)

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
        if mask is not None:
            self.useful_tokens += int(mask.sum())
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the frozen copy that serves as reference is taken off afterwards."""
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            model = self.accelerator.unwrap_model(self.model)
            if "ref" in getattr(model, "peft_config", {}):
                model.delete_adapter("ref")

    def held_out(self: Any, dataset: Any) -> dict[str, float]:
        """Loss and the trainer's own figures on held-out rows."""
        found = self.evaluate(self.eval_dataset)
        return {name: found[f"eval_{key}"] for key, name in (("loss", "loss"), *((s, s) for s in self.shown))}


def translated(args: TrainingArguments, config_cls: type, options: dict[str, Any]) -> Any:
    """`args` as TRL's configuration, with the method's own options."""
    known = {f.name for f in dataclasses.fields(config_cls) if f.init}
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init and f.name in known}
    for name in KEPT_BY_THE_FRAME:
        given.pop(name, None)
    made = config_cls(**{**given, "remove_unused_columns": False, **options})
    made._n_gpu = min(made.n_gpu, 1)
    return made


def refuse_special_heads(model: Any) -> None:
    """Raise `ConfigError` for a head that is adapted, quantized or edited."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    plain = isinstance(head, torch.nn.Linear) and weight is not None and weight.is_floating_point()
    adapted = hasattr(head, "base_layer") or hasattr(head, "original_module")
    if not plain or adapted:
        raise ConfigError(
            f"preference trainers multiply with the head's weight themselves, and this head is a {type(head).__name__}",
            where="model.adapters" if adapted else "model.quantization",
            hint="leave the head out of adapters, edits and quantization",
        )
