"""One stage: its trainer built and run, its result on disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from core.config.files import write_json
from core.config.load import ResolvedStage
from core.config.registry import App
from core.config.run_folder import RunFolder, versions
from core.config.schema import Recipe
from core.data.collate import Collator
from core.distributed.launch import agreed, is_main, sum_over_ranks, world_size
from core.errors import CheckpointError
from core.training import checkpoint, trackers
from core.training.build import add_adapters, merged_in_memory, parameter_counts, training_hooks
from core.training.callbacks import LiveLine, StopAndSave, TaskMetric, forget_later, peak_gib, say
from core.training.evaluate import make_evaluator, score_within
from core.training.fitting import begun_with, fit, refuse_beyond_context
from core.training.prepare import Prepared, prepare_data, step_sizes
from core.training.saving import whole


class StageRunner:
    """Runs the stages of one recipe on one model after another."""

    def __init__(
        self, app: App, recipe: Recipe, run: RunFolder, tokenizer: Any, device: str, eval_examples: list
    ) -> None:
        self.app, self.recipe, self.run, self.tokenizer, self.device = app, recipe, run, tokenizer, device
        self.eval_examples, self.evaluator = eval_examples, make_evaluator(app, recipe.eval)
        self.changes_base = recipe.model.path is None
        self.asked_to_stop = False

    def run_stage(
        self,
        stage: ResolvedStage,
        model: Any,
        examples: list,
        held_out: list,
        resume: bool,
        prepared: Prepared | None = None,
    ) -> tuple[Any, dict]:
        """Train one stage. Returns the model and what stage.json says.

        Args:
            prepared: the stage's data, where they are prepared already.
        """
        from core.training.run import stage_result

        recipe, folder = stage.recipe, self.run.stage_dir(stage.index, stage.name)
        model = self._adapt(model, recipe)
        if resume and (finished := stage_result(self.run, stage)) is not None:
            say(self.run, f"{stage.name}: finished before")
            return self._load_weights(model, folder / "weights"), finished
        prepared = prepared or prepare_data(self.app, stage, self.tokenizer, examples, held_out, self.run)
        sizes = step_sizes(recipe, prepared.dataset, prepared.stats, len(self.tokenizer), self.device, world_size())
        sizes = agreed(fit(stage, self.device, sizes))
        recipe.backend.activation_checkpoint = sizes.get("activation_checkpoint", recipe.backend.activation_checkpoint)
        if resume:
            sizes = begun_with(folder, stage, sizes)
        beyond = refuse_beyond_context(model, prepared.dataset)
        summary = {
            "stage": stage.name,
            "method": stage.method,
            **parameter_counts(model),
            **prepared.summary(),
            **sizes,
        }
        self._announce(summary, stage.index, recipe.data.max_length)
        if beyond:
            say(self.run, f"{stage.name}: {beyond}")
        if recipe.train.warmup > sizes["steps"]:
            say(self.run, f"{stage.name}: {sizes['steps']} steps, all of them warm-up (train.warmup: "
                          f"{recipe.train.warmup:g}): the learning rate never reaches train.lr")  # fmt: skip
        trainer, stopper = self._trainer(stage, model, prepared, sizes, folder / "checkpoints")
        start = time.time()
        point = checkpoint.newest(folder / "checkpoints") if resume else None
        model = self._fit(stage, trainer, stopper, point)
        if stopper.asked and trainer.state.global_step < trainer.state.max_steps:
            return model, {"status": "stopped", "step": trainer.state.global_step}
        chosen = checkpoint.best(folder / "checkpoints")
        if chosen is not None and chosen != checkpoint.newest(folder / "checkpoints"):
            say(
                self.run,
                f"{stage.name}: best {recipe.eval.select} {trainer.best_value:.3f} at {chosen.name}; taking it",
            )
            model = self._load_weights(model, chosen)
        result = {
            "status": "done", **summary, "seconds": round(time.time() - start, 1), "versions": versions(),
            "tokens_seen": tokens_seen(trainer), "peak_gib": round(peak_gib(), 3),
            "chosen": chosen.name if chosen else None,
            "final_loss": next((h["loss"] for h in reversed(trainer.state.log_history) if "loss" in h), None),
        }  # fmt: skip
        if is_main():
            _save_weights(model, folder / "weights")
            write_json(folder / "stage.json", result)
        return model, result

    def _fit(self, stage: ResolvedStage, trainer: Any, stopper: StopAndSave, point: Path | None) -> Any:
        """Train from the start or from a checkpoint; one of the last step leaves nothing to train."""
        if point is None:
            forget_later(self.run, stage.name, 0)
        else:
            from transformers import TrainerState

            state = TrainerState.load_from_json(str(point / "trainer_state.json"))
            say(self.run, f"{stage.name}: resuming at {point.name}")
            forget_later(self.run, stage.name, state.global_step)
            chosen = checkpoint.best(point.parent)
            trainer.best_value = None if chosen is None else checkpoint.manifest(chosen).get("best_value")
            trainer.tokens_before = checkpoint.manifest(point).get("tokens_seen", 0)
            if hasattr(trainer, "go_on_reading"):
                trainer.go_on_reading(checkpoint.manifest(point).get("stream"))
            if state.global_step >= trainer.args.max_steps:
                trainer.state = state
                return self._load_weights(trainer.accelerator.unwrap_model(trainer.model), point)
        try:
            trainer.train(resume_from_checkpoint=None if point is None else str(point))
        finally:
            stopper.restore()
            trackers.close(stage.recipe.trackers)
            trainer.writer.wait()
        self.asked_to_stop = stopper.asked
        return trainer.accelerator.unwrap_model(trainer.model)

    def _adapt(self, model: Any, recipe: Recipe) -> Any:
        """Adapters of the stage on the model; a chain that goes from adapters to full tuning folds them in first."""
        has = hasattr(model, "peft_config")
        if recipe.model.adapters and not has:
            return add_adapters(model, recipe.model.adapters, recipe.seed)
        if not recipe.model.adapters:
            self.changes_base = True
            return merged_in_memory(model) if has else model
        return model

    def _trainer(
        self, stage: ResolvedStage, model: Any, prepared: Prepared, sizes: dict, folder: Path
    ) -> tuple[Any, Any]:
        from core.training.arguments import training_arguments
        from core.training.trainer import CountingCollator, SupervisedTrainer

        recipe = stage.recipe
        live, stopper = LiveLine(self.run, stage.name), StopAndSave(self.run)
        callbacks: list[Any] = [live, stopper, *prepared.stage.callbacks]
        measured = None
        every = recipe.eval.every
        interval = int(every) if every >= 1 else max(1, round(every * sizes["steps"])) if every else 0
        trainer_cls, added = training_hooks(recipe.model, model, prepared.stage.trainer or SupervisedTrainer)
        callbacks += added
        if prepared.stream is not None:
            from core.training.streaming import streaming

            trainer_cls = streaming(trainer_cls)
        growing = bool(recipe.train.batch.ramp)
        if growing:
            from core.training.ramp import ramped

            trainer_cls = ramped(trainer_cls, recipe.train.batch)
        if interval and (self.eval_examples or prepared.eval_dataset is not None):
            measured = TaskMetric(self.run, stage.name, lambda: {}, recipe.eval.select, False, interval)
            callbacks.insert(0, measured)
        name = trackers.set_up(recipe.trackers, self.run, stage.name)
        trainer = trainer_cls(
            model=model,
            args=training_arguments(recipe, sizes, folder, self.device),
            train_dataset=prepared.dataset if growing else prepared.for_training(sizes["micro"]),
            eval_dataset=prepared.eval_dataset,
            data_collator=CountingCollator(
                Collator(self.tokenizer.pad_token_id or 0, max_length=recipe.data.max_length)
            ),
            callbacks=callbacks,
            train_config=recipe.train,
            backend=recipe.backend,
            keep=recipe.checkpoint.keep,
            mode=recipe.checkpoint.mode,
            **prepared.stage.trainer_options,
        )
        trainer.args.run_name = name
        trainer.notes["tokens_seen"] = lambda: tokens_seen(trainer)
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        live.trainer = trainer
        if measured is not None:
            measured.trainer = trainer
            measured.measure = lambda: self._measure(stage, trainer, prepared, measured)
        return trainer, stopper

    def _measure(self, stage: ResolvedStage, trainer: Any, prepared: Prepared, metric: TaskMetric) -> dict[str, Any]:
        from core.training.run import _pipeline_config

        values: dict[str, Any] = {}
        model = trainer.accelerator.unwrap_model(trainer.model)
        if prepared.eval_dataset is not None:
            values.update(trainer.held_out(prepared.eval_dataset))
        if is_main() and stage.recipe.eval.select != "loss" and self.eval_examples:
            pipeline = self.app.pipeline_cls.from_model(model, self.tokenizer, **_pipeline_config(self.app, stage))
            report = score_within(
                pipeline, self.evaluator, self.eval_examples, stage.recipe.eval.sampling, stage.recipe.eval.max_seconds
            )
            values.update({name: found.value for name, found in report.metrics.items()})
            selected = report.metrics.get(metric.select)
            metric.higher = selected is not None and selected.higher_is_better
        return values

    def _announce(self, summary: dict[str, Any], index: int, longest: int) -> None:
        if not is_main():
            return
        write_json(self.run.stage_dir(index, summary["stage"]) / "plan.json", summary)
        write_json(self.run.path / "plan.json", summary)
        share = summary["trainable"] / summary["parameters"]
        say(
            self.run,
            f"{summary['stage']}: {summary['parameters'] / 1e6:.2f}M parameters, {share:.1%} train;"
            f" {summary['rows']} rows"
            f" ({summary['dropped']} dropped), {summary['tokens']} tokens in {summary['sequences']} sequences;"
            f" {summary['steps']} steps of {summary['sequences_a_step']}"
            f" ({summary['micro']} × {summary['accumulation']}){_predicted(summary)}",
        )
        if summary["dropped"] or summary["cut"]:
            say(self.run, f"{summary['stage']}: {_fitted(summary, longest)}")

    def _load_weights(self, model: Any, folder: Path) -> Any:
        """The trained weights of a checkpoint or a finished stage, into `model`."""
        from safetensors.torch import load_file

        if hasattr(model, "snapshot"):
            return model.load(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError("no weights", where=str(folder))
        state = {k: v for f in files for k, v in load_file(f).items()}
        if hasattr(model, "peft_config"):
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model, state)
        else:
            missing, unexpected = model.load_state_dict(state, strict=False)
            model.tie_weights()
            if unexpected:
                raise CheckpointError(f"weights of another model: {unexpected[:3]}", where=str(folder))
        return model


def _fitted(summary: dict[str, Any], longest: int) -> str:
    """What did not fit into a row, for a person."""
    dropped, cut = summary["dropped"], summary["cut"]
    parts = []
    if dropped:
        first = ", ".join(str(number + 1) for number in summary["first_dropped"][:3])
        named = f" (row {first}{', …' if dropped > 3 else ''})" if first else ""
        parts.append(f"{dropped / max(1, summary['rows']):.0%} of the rows do not fit and are dropped{named}")
    if cut:
        parts.append(f"{summary['cut_tokens']} tokens of what is given are cut from {cut}")
    return f"{'; '.join(parts)}; data.max_length is {longest}"


def _predicted(summary: dict[str, Any]) -> str:
    if "predicted_peak_gib" not in summary:
        return ""
    recomputed = ", activation checkpointing" if summary["activation_checkpoint"] == "full" else ""
    return (
        f"{recomputed}; about {summary['predicted_peak_gib']:.2f} GiB, {summary['predicted_seconds_a_step']:.2g} s each"
    )


def tokens_seen(trainer: Any) -> int:
    """Tokens that were not padding, over all processes, from the stage's first step on."""
    return trainer.tokens_before + sum_over_ranks(trainer.useful_tokens)


def _save_weights(model: Any, folder: Path) -> None:
    whole(dict(model.named_parameters()))
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, **({"save_embedding_layers": False} if hasattr(model, "peft_config") else {}))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
