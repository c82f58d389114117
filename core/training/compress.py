"""Bring a trained model into fewer bits: calibrate, quantize, score before and after, save.

Takes a run or a recipe, whose training text calibrates and whose evaluation data score, and leaves a folder that every
pipeline opens. An adapter is folded into its base first; layers that trained in a low-bit form are packed. What is
found about each layer and what the task lost lie in the folder beside the weights. What stays dense is written in 16
bits where these hold it exactly; where only a rewrite made it inexact, as a rotation does, it is rounded to the base's
16 bits before it is scored.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from core.config.files import write_json
from core.config.registry import QUANTIZERS, get_app
from core.config.run_folder import RunFolder
from core.config.schema import Recipe
from core.data.rows import BadRows, read_sources, stream_sources
from core.errors import ConfigError, GraftError, UnsupportedError
from core.training.evaluate import make_evaluator, score_pipeline

REPORT, LENGTH = "compress.json", 512
OURS = {"int8": "llm_int8"}


def compress(
    source: str | Path | Recipe,
    quantization: str,
    out: str | Path,
    *,
    device: str = "auto",
    rows: int = 128,
    length: int | None = None,
    evaluate: bool = True,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Quantize the model of `source` (a run folder, or a recipe with a model path) into the folder `out`.

    Args:
        quantization: a preset with settings, e.g. "awq:int4:g128". A run that trained in a low-bit form is packed.
        rows, length: of the calibration text, in sequences and tokens; by default 128 of 512 tokens, or of the model's
            context where that is shorter. evaluate: score before and after.
        options: settings of the preset's search.

    Returns:
        what is written to compress.json: layers, bits, bytes, seconds, and metrics before and after.

    Raises:
        ConfigError: an unknown preset or setting, no model path, calibration rows that cannot be. UnsupportedError: a
            format of another library, or a preset that the model was not trained in.
    """
    from core.inference.pipeline import CARD
    from core.quantization.quantize import check_settings

    name, _, settings = quantization.partition(":")
    spec = QUANTIZERS.get(name).parsed(quantization)
    if spec is None:
        ours = ":".join(filter(None, ["graft", OURS.get(name, name), settings]))
        raise UnsupportedError(
            f"'{quantization}' is another library's and is applied while loading", where="--quantization",
            hint=f"{ours} is ours; or open the model with quantization='{quantization}'",
        )  # fmt: skip
    check_settings(spec, options or {})
    for flag, count, what in (("--rows", rows, "sequences"), ("--length", length, "tokens")):
        if count is not None and count < 1:
            raise ConfigError(f"calibration with {count} {what}", where=flag, hint="give 1 or more")
    recipe, path = _model_of(source)
    out = _writable(Path(out))
    app = get_app(recipe.app)
    sampling = recipe.eval.sampling
    examples = read_sources(app, recipe.data.eval, BadRows(recipe.data.on_bad))[: recipe.eval.limit] if evaluate else []
    with app.pipeline_cls.from_pretrained(path, device=device, quantization="none") as pipeline:
        calib = _calibration(pipeline.engine.model, spec, recipe, app, pipeline.tokenizer, rows, length)
        evaluator = make_evaluator(app, recipe.eval)
        before = score_pipeline(pipeline, evaluator, examples, sampling) if examples else None
        model = pipeline.engine.model
        if hasattr(model, "peft_config"):
            model = pipeline.engine.model = model.merge_and_unload()
        base_kind = _exact_kind(model)
        bytes_before = _bytes(model, base_kind)
        if calib is not None:
            print(f"{spec.preset} calibrates on the training text; its search can take minutes", flush=True)
        found = _quantized(model, spec, calib, recipe.seed, options or {})
        kind = _exact_kind(model) or base_kind
        _cast(model, kind, back=True)
        found |= {"bytes_before": bytes_before, "bytes_after": _bytes(model, kind)}
        after = score_pipeline(pipeline, evaluator, examples, sampling) if examples else None
        if (out / REPORT).is_file():
            shutil.rmtree(out)
        _cast(model, kind)
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
    print(
        f"{len(found['layers'])} layers at {found['bits_per_weight']:.3f} bits a weight; the model went from "
        f"{found['bytes_before'] / 2**20:.1f} to {found['bytes_after'] / 2**20:.1f} MiB in {found['seconds']:.0f} s"
    )
    print(f"saved: {out}")
    return found


def _writable(out: Path) -> Path:
    """`out`, which is free or holds a result of before, and can be written; found out before there is work to lose."""
    if out.exists() and not (out / REPORT).is_file():
        raise ConfigError("the place is taken by something else", where=str(out), hint="give a new folder with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent):
            return out
    except OSError as error:
        raise ConfigError(
            f"the place cannot be written: {error.strerror}", where=str(out), hint="give another folder with --out"
        ) from error


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


def _calibration(model: Any, spec: Any, recipe: Recipe, app: Any, tokenizer: Any, rows: int, length: int | None) -> Any:
    """Batches of the recipe's training text where the preset looks at data; a preset of training wants its form."""
    from core.statistics.calibration import token_batches
    from core.training.run import texts_of

    if spec.trained and not any(getattr(part, "extra", {}).get("latent") for part in model.modules()):
        raise UnsupportedError(
            f"preset '{spec.preset}' is made by training, and this model was not trained in it",
            where="--quantization", hint=f"train with model.quantization: {spec.preset}, then compress the run",
        )  # fmt: skip
    if not spec.needs_calibration:
        return None
    context = getattr(model.config, "max_position_embeddings", None) or LENGTH
    if length is not None and length > context:
        raise ConfigError(
            f"calibration rows of {length} tokens, and the model reads {context}", where="--length",
            hint=f"--length {context} or less",
        )  # fmt: skip
    examples = stream_sources(app, recipe.data.train, BadRows(recipe.data.on_bad), recipe.seed)
    texts = (text for example in examples for text in texts_of(example))
    return token_batches(tokenizer, texts, length or min(LENGTH, context), rows)


def _quantized(model: Any, spec: Any, calib: Any, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    from core.quantization.quantize import quantize_model

    if spec.trained:
        return _packed(model, spec)
    found = quantize_model(model, spec, calib, seed=seed, **options).to_dict()
    if calib is not None:
        found["calibration"] = {"tokens": sum(batch.numel() for batch in calib), "sequences": sum(map(len, calib))}
    return found


def _packed(model: Any, spec: Any) -> dict[str, Any]:
    from core.quantization.linear import QuantizedLinear
    from core.quantization.quantize import QuantReport, row_of
    from core.quantization.trained import pack

    pack(model)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    # rounding is what the layers did in training already
    rows = [row_of(name, part, weight_error=0.0) for name, part in layers.items()]
    return QuantReport(str(spec), rows, notes={"packed": True}).to_dict()


def _exact_kind(model: Any) -> Any:
    """The 16-bit format that holds every floating parameter exactly, as after reading a folder of it; or None."""
    import torch

    floats = [p.detach() for p in model.parameters() if p.is_floating_point()]
    fitting = (
        kind for kind in (torch.bfloat16, torch.float16) if all(torch.equal(p.to(kind).to(p.dtype), p) for p in floats)
    )
    return next(fitting, None)


def _cast(model: Any, kind: Any, back: bool = False) -> None:
    """Every floating parameter into `kind`, and `back` to what it was; None leaves all as it is."""
    for parameter in model.parameters():
        if kind is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(kind).to(parameter.dtype if back else kind)


def _bytes(model: Any, kind: Any) -> int:
    """Bytes of the model with its floating parameters in `kind`, or as they are."""
    held = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    floats = {id(p) for p in model.parameters() if p.is_floating_point()}
    return sum(t.numel() * (kind.itemsize if kind and key in floats else t.element_size()) for key, t in held.items())


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
