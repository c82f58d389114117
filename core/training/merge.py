"""Fold a run's adapters or branches into its base, in one of three declared ways, each with its measured drift.

`separate` folds nothing: base and adapter go on side by side, which is exact. `dense` adds the adapter's product to
the weights it was trained on (for a quantized base these are the dequantized ones, not the originals) and writes 16 or
32 bits. `requantize` then holds the sum in the base's number format again, which is the smallest and moves the most.
Sums are made in fp32 and cast once at the end: in bf16 an update smaller than the weight's spacing would be lost.
Logits are compared on a probe with those of the adapted model; the folder that results is one that any runtime loads.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from core.config.files import read_json, write_json
from core.errors import ConfigError, MergeError
from core.models.load import DTYPES

Mode = Literal["separate", "dense", "requantize"]
MODES = ("separate", "dense", "requantize")
DESCRIPTIONS = {
    "separate": "base and adapter side by side",
    "dense": "merged in fp32, cast once",
    "requantize": "merged in fp32, quantized again",
}
PROBE_ROWS, PROBE_TOKENS = 4, 64


def merge(
    source: str | Path, out: str | Path, dtype: str = "auto", *, mode: str = "dense", max_drift: float | None = None
) -> dict[str, float]:
    """Merge the adapter at `source` (run folder or adapter folder) and write the result to `out`.

    Args:
        dtype: of the written weights; auto keeps the dtype the base was stored in.
        mode: separate, dense or requantize. max_drift: largest mean difference of logits that is accepted.

    Returns:
        mean and largest absolute difference of the logits on the probe (fp32, T×V): of merging, of storing what was
        merged, and of both; `top1`, the share of positions whose likeliest token stayed.

    Raises:
        MergeError: there is no adapter to merge, or the drift is above `max_drift`; nothing is written then.
    """
    from core.control.stacking import NOTE as STACKED
    from core.inference.load import base_of, load_for_serving, trained_on
    from core.models.load import resolve_path
    from core.quantization.load import holds_codes

    if mode not in MODES:
        raise ConfigError(f"unknown mode '{mode}'", where="--mode", hint=f"known: {', '.join(MODES)}")
    folder = Path(resolve_path(str(source)))
    if (folder / STACKED).is_file():
        raise MergeError(
            "a stacked model stays beside its two bases",
            where=str(folder),
            hint="open it as it is: apps.lm.StackPipeline",
        )
    has_adapter = (folder / "adapter_config.json").is_file()
    branches = not has_adapter and has_branches(folder)
    if not has_adapter and not branches and (dtype == "auto" or mode == "separate"):
        raise MergeError(
            "nothing to merge: the model has no adapter",
            where=str(folder),
            hint="it can be used as it is; with a dtype it is written in that number format",
        )
    quantization = trained_on(str(folder)) if has_adapter else "none"
    codes = has_adapter and holds_codes(base_of(str(folder)))
    if mode == "requantize" and quantization == "none" and not codes:
        raise MergeError(
            "the branches are dense, and graft quantizes what they give with graft compress" if branches
            else "the base is not quantized", where=str(folder), hint="merge it densely: --mode dense",
        )  # fmt: skip
    model, tokenizer, _ = load_for_serving(str(source), device="cpu", dtype="fp32")
    probe = probe_ids(len(tokenizer))
    # before the first forward pass, in which a CPU kernel may round what the format holds
    dense = _dense(model) if has_adapter and mode != "separate" else None
    before = logits_of(model, probe)
    if mode == "separate":
        drift = _drift(before, before, logits_of(load_for_serving(str(source), device="cpu", dtype="fp32")[0], probe))
        _check(drift, max_drift, folder)
        _replace(Path(out), lambda place: shutil.copytree(folder, place))
        write_json(Path(out) / "merge.json", {"mode": mode, "quantization": quantization, "drift": drift})
    else:
        merged = _merged(model, dense, str(folder)) if has_adapter else _folded(model) if branches else model
        in_fp32 = logits_of(merged, probe)
        target, stored = _stored(merged, folder, dtype, mode, quantization)
        drift = _drift(before, in_fp32, logits_of(stored, probe))
        _check(drift, max_drift, folder)
        untie_if_needed(stored)
        _replace(Path(out), lambda place: _write(stored, tokenizer, folder, place))
        note = {"mode": mode, "how": DESCRIPTIONS[mode], "dtype": target, "drift": drift}
        write_json(Path(out) / "merge.json", note)
    print(f"merged: {out} ({DESCRIPTIONS[mode]})")
    print(
        f"logit drift: merging max {drift['merge_max']:.1e} mean {drift['merge_mean']:.1e},"
        f" storing max {drift['cast_max']:.1e} mean {drift['cast_mean']:.1e};"
        f" {drift['top1']:.1%} of the likeliest tokens stayed"
    )
    return drift


def probe_ids(vocabulary: int) -> Any:
    """Ids (rows, tokens) that the drift is measured on: the first ones of the vocabulary, then random ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, vocabulary, (PROBE_ROWS - 1, PROBE_TOKENS), generator=generator)
    return torch.cat([torch.arange(1, PROBE_TOKENS + 1).remainder(vocabulary).unsqueeze(0), random])


def logits_of(model: Any, probe: Any) -> Any:
    """fp32 logits of the probe ids (B, T)."""
    import torch

    with torch.no_grad():
        return model(input_ids=probe, use_cache=False).logits.float()


def untie_if_needed(model: Any) -> None:
    """Rewrite the tie flag when embedding and head hold different weights, or loading would overwrite the head."""
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head.weight is not embed.weight:
        model.config.tie_word_embeddings = False


def _dense(model: Any) -> Any:
    """The quantized base of an adapted model as a plain fp32 model; None for a base that is plain already."""
    from core.inference.save import dense_base

    return dense_base(model).float() if hasattr(model.get_base_model(), "graft_quantization") else None


def has_branches(folder: Path) -> bool:
    """Whether the model in `folder` has learning branches beside or behind its blocks (Control LLM)."""
    graft = read_json(folder / "config.json").get("graft") or {}
    return any(op["kind"] in ("sidecar", "insert_block") for op in graft.get("ops", ()))


def _folded(model: Any) -> Any:
    """The plain model with the mean of both branches in each block: near to the model that was trained, not equal.

    A quantized branch counts with the weights that its codes stand for.
    """
    from core.control.expand import merge_back
    from core.quantization.hf import to_dense

    return merge_back(to_dense(model)).eval()


def _merged(model: Any, dense: Any, folder: str) -> Any:
    """The plain fp32 model with the adapter folded in."""
    from core.inference.load import attach_adapter

    return (model if dense is None else attach_adapter(dense, folder).eval()).merge_and_unload()


def _stored(merged: Any, folder: Path, dtype: str, mode: str, quantization: str) -> tuple[str, Any]:
    """What the weights are written as, by name, and a model that holds them so."""
    import torch

    if mode == "requantize":
        if quantization == "none":
            return _rounded_again(merged, folder)
        from core.quantization.load import requantize

        return quantization, requantize(merged, quantization).eval()
    target = _stored_dtype(folder) if dtype == "auto" else getattr(torch, DTYPES[dtype])
    return str(target).removeprefix("torch."), merged if target == torch.float32 else copy.deepcopy(merged).to(target)


def _rounded_again(merged: Any, folder: Path) -> tuple[str, Any]:
    """The base of codes with the merged weights in them: each layer rounds with the choices that data made for it."""
    from core.config.schema import ModelConfig
    from core.inference.load import base_of
    from core.quantization.linear import QuantizedLinear
    from core.quantization.load import load_base

    base = load_base(ModelConfig(path=base_of(str(folder)), dtype="fp32"), None, device="cpu")
    dense = merged.state_dict()
    for name, part in base.named_modules():
        if isinstance(part, QuantizedLinear):
            part.requantize(dense.pop(f"{name}.weight"))
            if part.bias is not None:
                part.bias.copy_(dense.pop(f"{name}.bias"))
    base.load_state_dict(dense, strict=False)
    return base.graft_quantization, base.eval()


def _drift(before: Any, merged: Any, stored: Any) -> dict[str, float]:
    def pair(name: str, first: Any, second: Any) -> dict[str, float]:
        difference = (first - second).abs()
        return {f"{name}_max": float(difference.max()), f"{name}_mean": float(difference.mean())}

    kept = float((before.argmax(-1) == stored.argmax(-1)).float().mean())
    return {
        **pair("merge", merged, before), **pair("cast", stored, merged), **pair("total", stored, before), "top1": kept,
    }  # fmt: skip


def _check(drift: dict[str, float], limit: float | None, folder: Path) -> None:
    if limit is not None and drift["total_mean"] > limit:
        raise MergeError(
            f"the logits move by {drift['total_mean']:.2e} on average, {limit:.2e} is the limit",
            where=str(folder),
            hint="keep base and adapter apart (--mode separate) or write more bits (--mode dense --dtype fp32)",
        )


def _write(model: Any, tokenizer: Any, folder: Path, place: Path) -> None:
    from core.inference.pipeline import CARD

    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    if (folder / CARD).is_file():
        shutil.copy(folder / CARD, place / CARD)


def _replace(out: Path, write: Any) -> None:
    """Write a folder beside `out` and move it there."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    write(temporary)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)


def _stored_dtype(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig

    from core.inference.load import base_of
    from core.models.load import resolve_path
    from core.models.surgery import register

    register()
    place = base_of(str(folder)) if (folder / "adapter_config.json").is_file() else str(folder)
    stored = copy.copy(AutoConfig.from_pretrained(resolve_path(place))).dtype
    return torch.float32 if stored is None else stored
