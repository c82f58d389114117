"""DeepNorm as an edit: post-norm blocks that train at any depth (Wang et al. 2022, "DeepNet").

The stream is scaled by α = (2 N)^¼, and what enters it starts small: value, output and feed-forward maps are drawn with
a gain of β = (8 N)^-¼, query and key with one of 1 (Glorot & Bengio 2010), so that an update changes the model's output
by a bounded amount whatever the depth N. It is a way to build a model, not to change one that has learnt.
"""

from __future__ import annotations

from typing import Any

import torch

from core.config.registry import BuildContext, NoOptions
from core.errors import UnsupportedError
from core.models.surgery import apply
from core.models.topology import ModelTopology


def build(model: Any, options: NoOptions, context: BuildContext) -> Any:
    """`model`, whose weights are fresh, with post-norm blocks and DeepNorm's initialisation, in place.

    Raises:
        UnsupportedError: the model was loaded and not built, or is of another family.
    """
    if getattr(model.config, "_name_or_path", ""):
        raise UnsupportedError(
            "weights that were trained pre-norm mean nothing after the sum",
            where="model.edits",
            hint="deepnorm builds a model: give model.preset in the place of model.path",
        )
    blocks = ModelTopology.of(model).blocks
    count = len(blocks)
    apply(model, "deepnorm", alpha=(2 * count) ** 0.25)
    generator = torch.Generator().manual_seed(context.seed)
    for block in blocks:
        for role, linear in block.linears().items():
            gain = 1.0 if role in ("q", "k") else (8 * count) ** -0.25
            draw(linear.weight, gain, generator)
    return model


@torch.no_grad()
def draw(weight_OI: torch.Tensor, gain: float, generator: torch.Generator) -> None:
    """Normal values of variance gain² · 2 / (inputs + outputs), the same on every device."""
    outputs, inputs = weight_OI.shape
    drawn = torch.randn(outputs, inputs, generator=generator) * (gain * (2 / (inputs + outputs)) ** 0.5)
    weight_OI.copy_(drawn)
