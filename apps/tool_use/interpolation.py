"""A longer context by position interpolation (Chen et al. 2023): positions are divided until they are known ones.

Trained on positions up to n, a model reads f·n of them when each rotary angle is that of position / f; a little tuning
makes it at home there. ToolLLM made a context of 2,048 into 8,192 so (Qin et al. 2023).
"""

from __future__ import annotations

from typing import Any

from apps.tool_use.options import InterpolationOptions
from core.errors import UnsupportedError
from core.models.rope import keep_exact


def interpolate(model: Any, options: InterpolationOptions, context: Any = None) -> Any:
    """`model` with its positions divided by `options.factor` and as much more room; the configuration says so.

    Raises:
        UnsupportedError: a model without rotary positions, or with positions that are scaled already.
    """
    config = model.config
    known = dict(getattr(config, "rope_parameters", None) or {})
    if known.get("rope_type") != "default" or "rope_theta" not in known:
        found = known.get("rope_type", "none")
        raise UnsupportedError(f"only plain rotary positions are interpolated, and these are '{found}'",
                               where="model.edits", hint="take the edit out")  # fmt: skip
    config.rope_parameters = {**known, "rope_type": "linear", "factor": float(options.factor)}
    config.max_position_embeddings = int(config.max_position_embeddings * options.factor)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "rope_type") and "inv_freq" in child._buffers:
                setattr(parent, name, type(child)(config=config).to(child.inv_freq.device))
    return keep_exact(model)
