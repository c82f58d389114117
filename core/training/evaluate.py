"""Score a model with its app's pipeline and evaluator: before, during and after training, or from the command line."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config.load import check_source
from core.config.registry import App, app_of, get_app
from core.config.run_folder import RunFolder
from core.config.schema import EvalConfig, Recipe, SourceConfig
from core.config.typed import Places
from core.data.rows import BadRows, read_sources
from core.errors import ConfigError, GraftError, nearest
from core.evaluation.report import Report
from core.evaluation.shards import shard


def make_evaluator(app: App, config: EvalConfig) -> Any:
    """The app's evaluator as the recipe sets it. Raises `ConfigError` for an argument that it does not take."""
    parameters = inspect.signature(app.evaluator_cls).parameters.values()
    accepted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.name != "metrics"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in config.with_:
        if name not in accepted and not open_ended:
            hint = " ".join(filter(None, [nearest(name, accepted), f"it takes: {', '.join(accepted) or 'none'}"]))
            raise ConfigError(f"the evaluator has no argument '{name}'", where=f"eval.with.{name}", hint=hint)
    return app.evaluator_cls(config.metrics or None, **config.with_)


def check_select(app: App, stages: Sequence[Any]) -> None:
    """Raise `ConfigError` for an unknown metric, and where the best checkpoint is chosen by what is never measured."""
    for recipe in (stage.recipe for stage in stages):
        try:
            name, measured = recipe.eval.select, make_evaluator(app, recipe.eval).metrics
        except ConfigError as error:
            error.where = recipe.place_of(error.where or "eval.metrics")
            raise
        if name == "loss" or not recipe.eval.every:
            continue
        where = recipe.place_of("eval.select")
        if name.split("/")[0] not in measured:
            hint = " ".join(filter(None, [nearest(name, measured), f"measured here: loss, {', '.join(measured)}"]))
            raise ConfigError(f"'{name}' is not measured", where=where, hint=hint)
        if not recipe.data.eval:
            raise ConfigError(f"'{name}' has nothing to be measured on", where=where, hint="give data.eval")


def check_sampling(recipe: Recipe) -> None:
    """Raise `ConfigError` for a key of `eval.sampling` that no generation takes, or a value of another type."""
    from core.inference.request import SamplingParams

    known = [field.name for field in dataclasses.fields(SamplingParams)]
    for name, value in recipe.eval.sampling.items():
        if name == "samples":
            continue
        where = recipe.place_of(f"eval.sampling.{name}")
        if name not in known:
            hint = " ".join(filter(None, [nearest(name, known), f"known: {', '.join(known)}"]))
            raise ConfigError(f"generation has no setting '{name}'", where=where, hint=hint)
        try:
            SamplingParams().updated({name: value})
        except ConfigError as error:
            raise ConfigError(error.what, where=where, hint=error.hint) from None


def part_of(app: App, examples: list[Any], part: str | None) -> list[Any]:
    """Part "2/4" of the examples, all for None. Raises `ConfigError` for an app whose examples belong together."""
    if part and getattr(app.pipeline_cls, "predicts_together", False):
        raise ConfigError(f"{app.name} is scored on its data as a whole", where="--shard", hint="leave it out")
    return shard(examples, part) if part else examples


def score_pipeline(pipeline: Any, evaluator: Any, examples: Sequence[Any], sampling: dict[str, Any]) -> Report:
    """Predict all examples and score them."""
    start = time.perf_counter()
    report = evaluator.score(pipeline.predict(list(examples), **sampling), list(examples))
    report.signature = {**report.signature, "sampling": sampling, "seconds": round(time.perf_counter() - start, 2)}
    return report


def score_within(
    pipeline: Any, evaluator: Any, examples: Sequence[Any], sampling: dict[str, Any], max_seconds: float
) -> Report:
    """As many of the first examples as fit into `max_seconds`, at least one chunk; the report's n says how many.

    A pipeline whose predictions rest on each other (`predicts_together`: a search needs all documents) gets them whole.
    """
    start, done, predictions = time.perf_counter(), 0, []
    chunk = len(examples) if getattr(pipeline, "predicts_together", False) else 64
    while done < len(examples):
        predictions += pipeline.predict(list(examples[done : done + chunk]), **sampling)
        done = len(predictions)
        elapsed = time.perf_counter() - start
        if elapsed * (1 + chunk / done) > max_seconds:
            break
    return evaluator.score(predictions, list(examples[:done]))


def evaluate(
    target: str | Path,
    sources: list[SourceConfig] | None = None,
    *,
    app: str | None = None,
    metrics: Sequence[str] = (),
    limit: int | None = None,
    sampling: dict[str, Any] | None = None,
    part: str | None = None,
    with_: dict[str, Any] | None = None,
) -> Report:
    """Score a run folder or a model folder on `sources`, by default on the run's own evaluation data.

    Args:
        part: only a part of the data, "2/4". with_: arguments of the evaluator, over the run's own.
    """
    config, chosen, on_bad = EvalConfig(), get_app(app) if app else None, "raise"
    try:
        recipe = RunFolder.open(target).recipe()
        chosen, config = chosen or app_of(recipe), recipe.eval
        if not sources:
            sources, on_bad = recipe.data.eval, recipe.data.on_bad
    except GraftError:
        if chosen is None or sources is None:
            raise ConfigError(
                "a folder that is no run needs --app and --data",
                where=str(target),
                hint="graft eval MODEL --app translation --data FILE",
            ) from None
    for source in sources or ():
        check_source(chosen, source, Places("the data"), ())
    config.metrics, config.with_ = list(metrics) or config.metrics, {**config.with_, **(with_ or {})}
    examples = read_sources(chosen, sources, BadRows(on_bad))[: limit or config.limit]
    examples = part_of(chosen, examples, part)
    with chosen.pipeline_cls.from_pretrained(target) as pipeline:
        return score_pipeline(
            pipeline, make_evaluator(chosen, config), examples, {**config.sampling, **(sampling or {})}
        )
