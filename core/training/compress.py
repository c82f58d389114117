"""Bring a trained model into fewer bits: calibrate, quantize, score before and after, save.

Takes a run or a recipe, whose training text calibrates and whose evaluation data score, and leaves a folder that every
pipeline opens. An adapter is folded into its base first; layers that trained in a low-bit form are packed. What is
found about each layer and what the task lost lie in the folder beside the weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core.config.files import write_json
from core.config.registry import QUANTIZERS, get_app
from core.config.run_folder import RunFolder
from core.config.schema import Recipe
from core.data.rows import BadRows, read_sources
from core.errors import ConfigError, GraftError, UnsupportedError
from core.training.evaluate import make_evaluator, score_pipeline

REPORT = "compress.json"


def compress(
    source: str | Path | Recipe,
    quantization: str,
    out: str | Path,
    *,
    device: str = "auto",
    rows: int = 128,
    length: int = 512,
    evaluate: bool = True,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Quantize the model of `source` (a run folder, or a recipe with a model path) into the folder `out`.

    Args:
        quantization: a preset with settings, e.g. "awq:int4:g128". A run that trained in a low-bit form is packed.
        rows, length: of the calibration text, in sequences and tokens. evaluate: score before and after.
        options: settings of the preset's search.

    Returns:
        what is written to compress.json: layers, bits, bytes, seconds, and metrics before and after.

    Raises:
        ConfigError: an unknown preset, or no model path. UnsupportedError: a format of another library.
    """
    from core.inference.pipeline import CARD

    spec = QUANTIZERS.get(quantization.partition(":")[0]).parsed(quantization)
    if spec is None:
        raise UnsupportedError(
            f"'{quantization}' is another library's and is applied while loading", where="--quantization",
            hint=f"graft:{quantization} is ours; or open the model with quantization='{quantization}'",
        )  # fmt: skip
    recipe, path = _model_of(source)
    out = Path(out)
    if out.exists() and not (out / REPORT).is_file():
        raise ConfigError("the place is taken by something else", where=str(out), hint="give a new folder with --out")
    app = get_app(recipe.app)
    sampling = recipe.eval.sampling
    examples = read_sources(app, recipe.data.eval, BadRows("raise", None))[: recipe.eval.limit] if evaluate else []
    with app.pipeline_cls.from_pretrained(path, device=device, quantization="none") as pipeline:
        evaluator = make_evaluator(app, recipe.eval)
        before = score_pipeline(pipeline, evaluator, examples, sampling) if examples else None
        model = pipeline.engine.model
        if hasattr(model, "peft_config"):
            model = pipeline.engine.model = model.merge_and_unload()
        found = _quantized(model, spec, recipe, app, pipeline.tokenizer, rows, length, options or {})
        after = score_pipeline(pipeline, evaluator, examples, sampling) if examples else None
        if (out / REPORT).is_file():
            shutil.rmtree(out)
        pipeline.save_pretrained(out)
    assert (out / CARD).is_file()
    if before is not None and after is not None:
        before.save(out / "eval" / "before")
        after.save(out / "eval" / "after")
        found["metrics"] = {
            name: {"before": before.value(name), "after": metric.value, "drop": _difference(before.value(name), metric)}
            for name, metric in after.metrics.items()
        }
        print(after.table(before))
    write_json(out / REPORT, found)
    if "layers" in found:
        print(
            f"{len(found['layers'])} layers at {found['bits_per_weight']:.3f} bits a weight; the model went from "
            f"{found['bytes_before'] / 2**20:.1f} to {found['bytes_after'] / 2**20:.1f} MiB in {found['seconds']:.0f} s"
        )
    print(f"saved: {out}")
    return found


def _model_of(source: str | Path | Recipe) -> tuple[Recipe, str]:
    if isinstance(source, Recipe):
        if source.model.path is None:
            raise ConfigError(
                "the recipe builds its model from nothing",
                where="model.path",
                hint="train it, then give the run folder",
            )
        return source, source.model.path
    run = RunFolder.open(source)
    return run.recipe(), str(run.path)


def _quantized(
    model: Any, spec: Any, recipe: Recipe, app: Any, tokenizer: Any, rows: int, length: int, options: dict[str, Any]
) -> dict[str, Any]:
    from core.quantization.quantize import quantize_model
    from core.quantization.trained import pack
    from core.statistics.calibration import token_batches
    from core.training.run import texts_of

    if spec.trained:
        if not any(getattr(part, "extra", {}).get("latent") for part in model.modules()):
            raise UnsupportedError(
                f"preset '{spec.preset}' is made by training, and this model was not trained in it",
                where="--quantization", hint=f"train with model.quantization: {spec.preset}, then compress the run",
            )  # fmt: skip
        pack(model)
        return {"spec": str(spec), "packed": True}
    calib = None
    if spec.needs_calibration:
        examples = read_sources(app, recipe.data.train, BadRows("raise", None), recipe.seed)
        texts = [text for example in examples for text in texts_of(example)]
        calib = token_batches(tokenizer, texts, length, rows)
    report = quantize_model(model, spec, calib, seed=recipe.seed, **options).to_dict()
    if calib is not None:
        report["calibration"] = {"tokens": sum(batch.numel() for batch in calib), "sequences": sum(map(len, calib))}
    return report


def _difference(before: float | None, metric: Any) -> float | None:
    if before is None or metric.value is None:
        return None
    return round(before - metric.value, 6)


def is_run(target: str | Path) -> bool:
    """Whether the target is a run folder."""
    try:
        RunFolder.open(target)
    except GraftError:
        return False
    return True
