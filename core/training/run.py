"""Run a recipe: stages one after the other, scored before and after, everything in the run folder.

Read from the top: `train` prepares tokenizer, data and model, evaluates, runs each stage, evaluates again, saves. It
knows recipes and run folders; what a row means is the app's, how a step is made is the trainer's.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json
from core.config.load import ResolvedStage, missing_variables, resolve_stages
from core.config.registry import App, app_of
from core.config.run_folder import RunFolder
from core.config.schema import Recipe
from core.data.rows import Examples, read_sources
from core.distributed.launch import barrier, is_main, join, world_size
from core.errors import AppInputError, CheckpointError, ConfigError
from core.evaluation.page import write_report_page
from core.training.callbacks import say
from core.training.evaluate import check_sampling, check_select, evaluate, make_evaluator, score_pipeline
from core.training.retention import retained, retention_rows
from core.training.stage import bad_rows_of

__all__ = ["evaluate", "plan", "train"]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def train(recipe: Recipe, run: RunFolder, *, resume: bool = False) -> dict[str, Any]:
    """Run `recipe` in `run`. With `resume`, finished stages are skipped and a broken one goes on where it was.

    Returns:
        {"status": done or stopped, "before": Report | None, "after": Report | None, "stages": […]}.

    Raises:
        GraftError: for everything the user can put right, before any training where possible.
    """
    try:
        return _train(recipe, run, resume)
    except KeyboardInterrupt:
        if is_main():
            run.set_status("stopped")
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise CheckpointError(
            f"the run cannot be written any further: {error.strerror}",
            where=str(error.filename or run.path),
            hint=f"free some space or make the folder writable, then go on: graft train --resume {run.path}",
        ) from error


def _train(recipe: Recipe, run: RunFolder, resume: bool) -> dict[str, Any]:
    from transformers.utils import logging as transformers_logging

    from core.inference.load import pick_device
    from core.models.load import load_tokenizer
    from core.quantization.load import carries_base
    from core.training.build import build_base
    from core.training.fitting import refuse_what_cannot_fit
    from core.training.stages import StageRunner

    transformers_logging.disable_progress_bar()
    start = time.time()
    if is_main():
        run.set_status("running")
    app, stages = app_of(recipe), resolve_stages(recipe)
    check_select(app, stages)
    check_sampling(recipe)
    check_processes(recipe, resume)
    device = pick_device(recipe.backend.device)
    join(device)
    refuse_what_cannot_fit(stages, device)
    if is_main():
        run.rejects.unlink(missing_ok=True)
    data = [_read(app, stage.recipe, run) for stage in stages]
    eval_examples = data[-1][1][: recipe.eval.limit]
    tokenizer = _tokenizer(recipe, data, run, resume, load_tokenizer)
    # rows that cannot be used are told before a model is loaded and scored
    ready = _first_prepared(app, stages, tokenizer, data, run, resume)
    texts = _Texts(data)
    build = app.build_model or build_base
    calibrated = carries_base(recipe.model.quantization)
    if calibrated:
        say(run, f"{recipe.model.quantization} calibrates on the training text; its search can take minutes")
    model = build(recipe.model, tokenizer, device=device, seed=recipe.seed, texts=texts)
    base = None if recipe.model.edits or calibrated else recipe.model.path
    runner = StageRunner(app, recipe, run, tokenizer, device, eval_examples)
    before = None
    if eval_examples and is_main():
        before = _score(app, recipe, stages[-1], model, tokenizer, eval_examples, run, "before", resume)
    known = retention_rows(recipe, tokenizer) if is_main() and not app.model else None
    retention = {"before": retained(model, known, tokenizer)} if known else {}
    barrier()
    results = []
    for stage, (examples, held_out) in zip(stages, data):
        if stage.init == "base" and stage.index:
            model = build(recipe.model, tokenizer, device=device, seed=recipe.seed, texts=texts)
        model, result = runner.run_stage(stage, model, examples, held_out, resume, ready.pop(stage.index, None))
        results.append(result)
        if result["status"] == "stopped" or (runner.asked_to_stop and stage is not stages[-1]):
            if is_main():
                run.set_status("stopped", stage=stage.name, seconds=round(time.time() - start, 1))
            return {"status": "stopped", "before": before, "after": None, "stages": results}
        if runner.changes_base:
            base = None
    after = None
    if is_main():
        save_model(app, model, tokenizer, _pipeline_config(app, stages[-1]), run.model_dir, base)
        if eval_examples:
            after = _score(app, recipe, stages[-1], model, tokenizer, eval_examples, run, "after", False)
            say(run, "\n" + after.table(before))
        if known:
            retention["after"] = retained(model, known, tokenizer)
            say(run, "retention: loss on held-out text of the base {before:.3f} → {after:.3f}".format(**retention))
        reason = {"skipped": "no held-out text of this base is known"}
        write_json(run.path / "eval" / "retention.json", retention or reason)
        run.set_status("done", seconds=round(time.time() - start, 1))
        say(run, f"report: {write_report_page(run)}")
    barrier()
    return {"status": "done", "before": before, "after": after, "stages": results}


def check_processes(recipe: Recipe, resume: bool) -> None:
    """Raise `ConfigError` where `backend.strategy` says otherwise than how many processes were started.

    One process may go on with what several began.
    """
    strategy, processes = recipe.backend.strategy, world_size()
    where = recipe.place_of("backend.strategy")
    if strategy == "single" and processes > 1:
        raise ConfigError(f"strategy single, and {processes} processes run", where=where, hint="set it to auto or ddp")
    if strategy == "ddp" and processes == 1 and not resume:
        raise ConfigError(
            "strategy ddp, and one process runs", where=where, hint="graft train RECIPE --gpus N, or auto"
        )


def plan(recipe: Recipe) -> dict[str, Any]:
    """The rows, tokens and steps of every stage, from its data and tokenizer; no weights are loaded."""
    from core.models.load import load_tokenizer
    from core.training.prepare import prepare_data, step_sizes

    app, stages = app_of(recipe), resolve_stages(recipe)
    data = [_read(app, stage.recipe, None) for stage in stages]
    tokenizer = load_tokenizer(recipe.model, _Texts(data))
    rows = []
    for stage, (examples, held_out) in zip(stages, data):
        prepared = prepare_data(app, stage, tokenizer, examples, held_out, None)
        sizes = step_sizes(stage.recipe, prepared.dataset, prepared.stats, len(tokenizer), "cpu", 1)
        rows.append({"stage": stage.name, "method": stage.method, **prepared.summary(), **sizes})
    return {"vocabulary": len(tokenizer), "stages": rows}


def _first_prepared(
    app: App, stages: list[ResolvedStage], tokenizer: Any, data: Sequence[Any], run: RunFolder, resume: bool
) -> dict[int, Any]:
    """The data of the first stage that is still to be trained, by the stage's number."""
    from core.training.prepare import prepare_data

    for stage, (examples, held_out) in zip(stages, data):
        if not (resume and stage_result(run, stage)):
            return {stage.index: prepare_data(app, stage, tokenizer, examples, held_out, run)}
    return {}


def save_model(app: App, model: Any, tokenizer: Any, config: dict[str, Any], folder: Path, base: str | None) -> None:
    """Save model, tokenizer and card as one folder. An adapter names its base, or carries one that was made here."""
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = base or "base"
    shutil.rmtree(folder, ignore_errors=True)
    app.pipeline_cls.from_model(model, tokenizer, **config).save_pretrained(folder)


def _read(app: App, recipe: Recipe, run: RunFolder | None) -> tuple[Any, list[Any]]:
    """Training examples, in memory or to be streamed, and held-out ones."""
    bad = bad_rows_of(recipe, run)
    streamed = recipe.data.streaming
    for source in (*recipe.data.train, *recipe.data.eval):
        verdict = getattr(app.readers.get(source.reader), "verdict", None)
        if run and verdict is not None and not missing_variables(source.path):
            say(run, f"{source.path}: {verdict(source.path, source.split)}")
    examples = (Examples if streamed else read_sources)(app, recipe.data.train, bad, recipe.seed)
    held_out = read_sources(app, recipe.data.eval, bad, recipe.seed) if recipe.data.eval else []
    if bad.count and run:
        say(run, f"{bad.count} bad rows skipped; see {run.rejects}")
    return examples, held_out


class _Texts:
    """The training text, read from the start each time and only as far as it is looked at."""

    def __init__(self, data: Sequence[tuple[Iterable[Any], list[Any]]]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[str]:
        return (text for examples, _ in self._data for example in examples for text in texts_of(example))


def texts_of(example: Any) -> list[str]:
    """What an example's class calls its texts, else its str."""
    parts = (getattr(example, name, None) for name in ("text", "src", "tgt"))
    return [part for part in parts if part] or [str(example)]


def _tokenizer(recipe: Recipe, data: Any, run: RunFolder, resume: bool, load_tokenizer: Any) -> Any:
    """The run's tokenizer; a trained one is kept in the run, so that every process and every resume has the same."""
    name = recipe.model.tokenizer
    if not (name and name.startswith("bpe:")):
        return load_tokenizer(recipe.model)
    folder = run.path / "tokenizer"
    if is_main() and not (resume and folder.is_dir()):
        temporary = folder.with_suffix(".tmp")
        load_tokenizer(recipe.model, _Texts(data)).save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    barrier()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _pipeline_config(app: App, stage: ResolvedStage) -> dict[str, Any]:
    """What serving must know of training: the options that the app's pipeline config has too, and the cache."""
    fields = app.pipeline_cls.config_cls.__dataclass_fields__
    shared = getattr(app.pipeline_cls, "from_training", ("template", "mode"))
    known = {n: getattr(stage.options, n) for n in shared if n in fields and hasattr(stage.options, n)}
    policy = stage.recipe.inference.kv.policy
    return known | ({"kv": policy} if "kv" in fields and policy != "full" else {})


def _score(app, recipe, stage, model, tokenizer, examples, run, when, resume):
    """Score the live model; an evaluation that a resumed run already has is read instead."""
    from core.evaluation.report import Report

    folder = run.eval_dir(when)
    if resume and (folder / "report.json").is_file():
        return Report.load(folder)
    pipeline = app.pipeline_cls.from_model(model, tokenizer, **_pipeline_config(app, stage))
    try:
        report = score_pipeline(pipeline, make_evaluator(app, recipe.eval), examples, recipe.eval.sampling)
    except AppInputError as error:
        raise _placed(error, pipeline, examples) from error
    report.save(folder)
    say(run, f"{when}: " + "  ".join(f"{n} {m}" for n, m in list(report.metrics.items())[:3] if m.value is not None))
    return report


def _placed(error: AppInputError, pipeline: Any, examples: Sequence[Any]) -> AppInputError:
    """The same error, with the first held-out row whose prompt fills the model's context."""
    context = getattr(pipeline.engine, "context", None)
    for number, example in enumerate(examples, 1):
        if context is not None and len(getattr(pipeline.prepare(example), "ids", ())) >= context:
            hint = "take it out of data.eval, shorten it, or choose a model with a longer context"
            return AppInputError(error.what, where=f"row {number} of data.eval", hint=hint)
    return error


def stage_result(run: RunFolder, stage: ResolvedStage) -> dict[str, Any] | None:
    """The stage's stage.json when it is finished and its configuration is unchanged."""
    path = run.stage_dir(stage.index, stage.name) / "stage.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if found.get("method") != stage.method:
        raise CheckpointError(
            f"the stage was trained with {found.get('method')}, the recipe says {stage.method}",
            where=str(path),
            hint="use the run's own recipe, or start a new run",
        )
    return found
