"""Edited models: decoding through the cache is the whole forward pass, what is saved is what is loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.method_checks.models import decoded, far, llama, logits, shake

ROUNDING = 1e-5


def edited(name: str) -> Any:
    """A model after one kind of op, with values in every new part."""
    import torch

    from core.control.learngene import Learngene
    from core.models.blocks.slices import take, take_hidden
    from core.models.linear_form import LowRankLinear
    from core.models.surgery import apply, replace_linear

    model = llama()
    if name == "drop_layers":
        apply(model, name, layers=[0, 2])
    elif name == "insert_block":
        apply(model, name, after=1)
    elif name == "sublayer":
        apply(model, name, layer=0, which="attn", form="noop")
        apply(model, name, layer=2, which="mlp", form="linear")
    elif name == "slice_block":
        take(model, 0, channels=range(0, 48, 2), kv_heads=[1])
        take(model, 1, pairs=torch.tensor([[0, 3], [1, 2]]))
    elif name == "slice_hidden":
        take_hidden(model, range(0, 32, 2))
    elif name == "linear_form":
        path = "model.layers.1.mlp.up_proj"
        replace_linear(model, path, LowRankLinear.from_dense(model.get_submodule(path).weight, rank=5))
    elif name == "ladder":
        apply(model, name, layers=[0, 2, 3])
    elif name == "skip_ffn":
        apply(model, name, threshold=2.0, cold_start=1, cold_end=3)
    elif name == "learngene":
        model = Learngene.fit_from(model).auxiliary(5)
    else:
        for layer in (1, 3):
            apply(model, "sidecar", layer=layer, merge=name.removeprefix("sidecar."))
    return shake(model)


OPS = (
    "drop_layers", "insert_block", "sublayer", "slice_block", "slice_hidden", "linear_form", "ladder", "skip_ffn",
    "learngene", "sidecar.lerp", "sidecar.dlerp", "sidecar.slerp", "sidecar.proj", "sidecar.prog", "sidecar.moe",
)  # fmt: skip


def cached(name: str) -> tuple[float, float]:
    model = edited(name)
    return far(decoded(model), logits(model)), ROUNDING


def reloaded(name: str) -> tuple[float, float]:
    from core.config.schema import ModelConfig
    from core.models.load import load_model

    model = edited(name)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = load_model(ModelConfig(path=folder), None).eval()
    return far(logits(again), logits(model)), 0.0


def _check(of: Callable[[str], tuple[float, float]], name: str) -> Callable[[], tuple[float, float]]:
    return lambda: of(name)


CHECKS = {
    **{f"cached = uncached, {name}": _check(cached, name) for name in OPS},
    **{f"loaded = saved, {name}": _check(reloaded, name) for name in OPS},
}
