"""Fold a run's adapters into its base.

Products of low-rank factors are added in fp32 and the sum is cast once at the end: in bf16 an update smaller than the
weight's spacing would be lost. The drift of the logits between the adapted and the merged model is measured on a probe
and printed; the folder that results is a plain model that any runtime loads.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from core.config.files import write_json
from core.errors import MergeError
from core.models.load import DTYPES


def merge(source: str | Path, out: str | Path, dtype: str = "auto") -> dict[str, float]:
    """Merge the adapter at `source` (run folder or adapter folder) and write a plain model to `out`.

    Args:
        dtype: of the written weights; auto keeps the dtype the base was stored in.

    Returns:
        mean and largest absolute difference of the logits on the probe: merged in fp32, and after the cast.

    Raises:
        MergeError: there is no adapter to merge.
    """
    import torch

    from core.inference.load import load_for_serving
    from core.inference.pipeline import CARD
    from core.models.load import resolve_path

    folder = Path(resolve_path(str(source)))
    has_adapter = (folder / "adapter_config.json").is_file()
    if not has_adapter and dtype == "auto":
        raise MergeError(
            "nothing to merge: the model has no adapter",
            where=str(folder),
            hint="it can be used as it is; with a dtype it is written in that number format",
        )
    model, tokenizer, _ = load_for_serving(str(source), device="cpu", dtype="fp32")
    probe = torch.arange(1, min(65, len(tokenizer))).unsqueeze(0)
    before = logits_of(model, probe)
    merged = model.merge_and_unload() if has_adapter else model
    in_fp32 = logits_of(merged, probe)
    target = _stored_dtype(folder) if dtype == "auto" else getattr(torch, DTYPES[dtype])
    cast = merged.to(target) if target != torch.float32 else merged
    drift = {
        "merge_max": float((in_fp32 - before).abs().max()),
        "merge_mean": float((in_fp32 - before).abs().mean()),
        "cast_max": float((logits_of(cast, probe) - in_fp32).abs().max()),
        "cast_mean": float((logits_of(cast, probe) - in_fp32).abs().mean()),
    }
    untie_if_needed(cast)
    out = Path(out)
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    cast.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if (folder / CARD).is_file():
        shutil.copy(folder / CARD, temporary / CARD)
    write_json(temporary / "merge.json", {"mode": "merge in fp32, cast once", "dtype": str(target), "drift": drift})
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)
    print(f"merged: {out} ({str(target).removeprefix('torch.')})")
    print(f"logit drift: merging max {drift['merge_max']:.1e} mean {drift['merge_mean']:.1e}, ", end="")
    print(f"casting max {drift['cast_max']:.1e} mean {drift['cast_mean']:.1e}")
    return drift


def logits_of(model: Any, probe: Any) -> Any:
    """fp32 logits of the probe ids (1, T)."""
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


def _stored_dtype(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig

    from core.inference.load import base_of
    from core.models.load import resolve_path

    stored = copy.copy(AutoConfig.from_pretrained(resolve_path(base_of(str(folder))))).dtype
    return torch.float32 if stored is None else stored
