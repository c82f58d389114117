"""What TRL's trainers need to run as a stage of a recipe.

A stage constructs every trainer in the same way and its callbacks read the same attributes. TRL's trainers take a
configuration class of their own, a tokenizer, and a `datasets.Dataset`; `Frame` translates. The schedule, the order of
the data, the checkpoints and the switches of `backend:` are those of every other stage; what a switch cannot mean for
TRL is refused by the recipe (`core.config.limits`).

Most of TRL's trainers compute the language-model head themselves, from `get_output_embeddings().weight`, and never call
the module: whatever hangs on the head would be left out silently, so such a model is refused here.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback, TrainingArguments

from core.config.schema import BackendConfig, TrainConfig
from core.errors import ConfigError
from core.training.masters import MasterAdamW, train_in
from core.training.saving import Saving
from core.training.schedule import Scheduled
from core.training.speed import HostInputs, made_fast, recomputes_from_host
from core.training.trainer import EpochSampler

KEPT_BY_THE_FRAME = ("remove_unused_columns", "label_names", "do_train", "do_eval", "do_predict")


class Frame(Scheduled, Saving):
    """Mixin: `class DpoTrainer(Frame, trl.DPOTrainer)`.

    Attributes:
        config_cls: TRL's configuration class. shown: figures besides the loss that `held_out` reports.
        fuses_head: whether TRL multiplies with the head's weight instead of calling the head.
        held_out_together: TRL gathers figures over the processes, so all of them measure.
    """

    config_cls: ClassVar[type]
    shown: ClassVar[tuple[str, ...]] = ()
    fuses_head: ClassVar[bool] = True
    held_out_together: ClassVar[bool] = True
    lr_scheduler: Any
    optimizer: Any

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
        if self.fuses_head:
            refuse_special_heads(model)
        import datasets

        datasets.disable_progress_bars()
        # rows are padded, so attention stays as it is; the micro-batch and its order are the recipe's
        given = backend or BackendConfig()
        self.train_config, self.backend = train_config, dataclasses.replace(given, packed_attention="mask")
        train_in(model, self.backend.precision.params)
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
        trainer: Any = self
        if recomputes_from_host(self.backend, trainer.args.device):
            trainer.add_callback(HostInputs(trainer.args.device))
        trainer.add_callback(KeptRecomputation())
        self._useful: Any = 0

    @property
    def useful_tokens(self) -> int:
        """Tokens of this process so far that were not padding."""
        return int(self._useful)

    @useful_tokens.setter
    def useful_tokens(self, count: int) -> None:
        self._useful = count

    def _send_telemetry(self) -> None:
        """TRL reports its use to a server unless told otherwise; graft sends nothing."""

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return EpochSampler(len(dataset), self.args.seed)

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if fresh and self.backend.precision.params == "bf16":
            self.optimizer = optimizer = MasterAdamW(optimizer.param_groups, self.backend.optimizer_step != "plain")
        return optimizer

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for mask in masks_of(inputs):
            self._useful = self._useful + mask.sum()
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the switches of `backend:` on; afterwards the model is plain again.

        A frozen copy that serves as reference has the same switches, and is taken off the model at the end.
        """
        with ExitStack() as switches:
            for model in filter(None, (self.model, getattr(self, "ref_model", None))):
                switches.enter_context(made_fast(model, self.backend, self.args.device))
            try:
                return super().train(*args, **kwargs)  # type: ignore[misc]
            finally:
                model = self.accelerator.unwrap_model(self.model)
                let_go_of_recomputation(model)
                if "ref" in getattr(model, "peft_config", {}):
                    model.delete_adapter("ref")

    def held_out(self: Any, dataset: Any) -> dict[str, float]:
        """Loss and the trainer's own figures on held-out rows."""
        found = self.evaluate(self.eval_dataset)
        return {name: found[f"eval_{key}"] for key, name in (("loss", "loss"), *((s, s) for s in self.shown))}


def masks_of(inputs: Any) -> list[torch.Tensor]:
    """The attention masks (B, T) of the rows that a model is called on."""
    if not isinstance(inputs, dict):
        return []
    if "attention_mask" in inputs:
        return [inputs["attention_mask"]]
    return [inputs[f"{side}_attention_mask"] for side in ("chosen", "rejected") if f"{side}_attention_mask" in inputs]


class KeptRecomputation(TrainerCallback):
    """Recomputation that was switched off comes back for the blocks that had it, with what each had.

    TRL switches it off to ask the reference or to draw answers, and on again for all blocks alike: that would undo the
    choice of blocks and send their inputs back to the GPU.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        bare = model.module if hasattr(model, "module") and not hasattr(model, "config") else model
        blocks = [m for m in bare.modules() if getattr(m, "gradient_checkpointing", False)]
        if not blocks:
            return

        def switch(on: bool) -> None:
            for block in blocks:
                block.gradient_checkpointing = on

        bare.gradient_checkpointing_disable = lambda: switch(False)
        bare.gradient_checkpointing_enable = lambda *args, **kwargs: switch(True)


def let_go_of_recomputation(model: Any) -> None:
    """Take back what `KeptRecomputation` laid on the model."""
    for name in ("gradient_checkpointing_disable", "gradient_checkpointing_enable"):
        vars(model).pop(name, None)


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
