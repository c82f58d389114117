"""Keys that a family of methods cannot act on: each is refused where a recipe writes it, with the reason.

A key that the recipe does not write is no wish; where its default would say something else than what holds, the
resolved recipe says what holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.config.schema import Recipe
from core.config.typed import Places
from core.errors import UnsupportedError


@dataclass(frozen=True)
class Limit:
    """A key of a recipe, which of its values the method cannot follow, why, and what to do.

    Args:
        holds: what holds where the stage does not write the key, in place of the default.
        when: the stage's typed options → whether this holds; it does for all by default.
    """

    key: str
    refused: Callable[[Any], bool]
    why: str
    hint: str
    holds: Any = None
    when: Callable[[Any], bool] = lambda options: True


def _hangs_on_the_head(adapters: list[dict[str, Any]]) -> bool:
    named: list[str] = []
    for adapter in adapters:
        targets = adapter.get("targets", [])
        named += [*adapter.get("modules_to_save", []), *([targets] if isinstance(targets, str) else targets)]
    return any(name.rpartition(".")[2] in ("lm_head", "embed_out") for name in named)


def _own_loss(why: str) -> tuple[Limit, ...]:
    """A loss that is not the cross-entropy which these keys shape."""
    return (
        Limit("train.label_smoothing", bool, why, "take it out"),
        Limit("train.z_loss", bool, why, "take it out"),
    )


_NO_VARLEN = Limit("backend.packed_attention", lambda kind: kind == "varlen", "its rows are not packed", "take it out")
_ROWS_APART = (
    Limit("data.packing", lambda on: on is True, "its rows never share a sequence", "set it to false", False),
    _NO_VARLEN,
    Limit("train.batch", lambda batch: bool(batch.get("ramp")), "its batches are of one size", "take ramp out"),
)
_IN_ROWS = Limit("train.batch.unit", lambda unit: unit == "tokens", "a step is so many rows", "set it to rows")
_HEAD_BY_TRL = (
    Limit("backend.cross_entropy", lambda form: form == "whole", "TRL never makes all logits here", "set it to auto"),
    Limit("model.adapters", _hangs_on_the_head, "TRL multiplies with the head's own weight and would leave out what "
          "hangs on the head", "take the head out of targets and modules_to_save"),
)  # fmt: skip
MASKED = (
    Limit("data.packing", lambda on: on is True, "an encoder sees all texts that share a sequence", "set it to false",
          False),
    _NO_VARLEN,
    *_own_loss("hidden tokens are learnt as they were"),
    Limit("backend.cross_entropy", lambda form: form == "fused", "it makes the hidden tokens' logits whole",
          "set it to auto"),
)  # fmt: skip


def _no_stream(why: str, hint: str, when: Callable[[Any], bool]) -> Limit:
    return Limit("data.streaming", lambda on: on is True, why, f"{hint}, or set streaming to false", when=when)


CHAT_SFT = (
    _no_stream("with.keep chooses among all rows", "take with.keep out", lambda options: options.keep is not None),
)
MONO = (_no_stream("with.shares counts all texts", "set the weight of each source", lambda options: options.shares),)
PRETRAIN = (
    _no_stream(
        "with.shares and with.alpha count all documents",
        "set the weight of each source",
        lambda options: options.shares or options.alpha is not None,
    ),
    _no_stream("documents apart are packed before training", "take with.apart out", lambda options: options.apart),
)
DPO = (*_ROWS_APART, *_own_loss("its loss is TRL's, over pairs of answers"), *_HEAD_BY_TRL)
CPO = (
    *_ROWS_APART,
    *_own_loss("its loss is TRL's, over pairs of answers"),
    Limit("backend.cross_entropy", lambda form: form == "fused", "TRL makes all logits here", "set it to auto"),
)
GRPO = (
    *_ROWS_APART,
    *_own_loss("its loss is TRL's, over whole answers"),
    *_HEAD_BY_TRL,
    Limit("train.batch.unit", lambda unit: unit == "tokens", "a step is so many answers", "set it to rows"),
)
RANKED = (
    *_ROWS_APART,
    *_own_loss("its loss ranks whole answers"),
    Limit("backend.cross_entropy", lambda form: form == "fused", "it makes its candidates' logits whole",
          "set it to auto"),
)  # fmt: skip
_PLAIN = "its trainer runs the encoder as it is"
CONTRASTIVE = (
    *_ROWS_APART,
    *_own_loss("its loss compares whole texts"),
    _IN_ROWS,
    Limit("train.batch.micro", lambda rows: rows != "auto", "it cuts its batches by tokens", "set it to auto"),
    Limit("backend.cross_entropy", lambda form: form != "auto", "there is no vocabulary in its loss", "set it to auto"),
    Limit("backend.kernels", lambda kind: kind == "fused", _PLAIN, "set it to auto"),
    Limit("backend.lora", lambda kind: kind == "fused", _PLAIN, "set it to auto"),
    Limit("backend.compile", lambda kind: kind == "blocks", _PLAIN, "set it to none"),
    Limit("backend.activation_checkpoint", lambda kind: kind == "selective", _PLAIN, "set it to auto, none or full"),
    Limit("backend.offload.activations", lambda where: where == "host", _PLAIN, "set it to auto"),
    Limit("backend.precision.params", lambda dtype: dtype != "auto", "it trains parameters as they were loaded",
          "set it to auto; model.dtype says how they are loaded"),
)  # fmt: skip


def settle(recipe: Recipe, limits_of: Callable[[str], tuple[Limit, ...]]) -> None:
    """Write into `recipe` what holds in each of its stages, for keys that the stage itself does not write.

    Args:
        limits_of: method → its limits.
    """
    for limit in limits_of(recipe.method or "") if not recipe.stages else ():
        block, _, name = limit.key.partition(".")
        if limit.holds is not None and _at(recipe.source.raw, (block, name)) is None:
            setattr(getattr(recipe, block), name, limit.holds)
    for stage in recipe.stages:
        for limit in limits_of(stage.method):
            block, _, name = limit.key.partition(".")
            if limit.holds is not None:
                getattr(stage, block).setdefault(name, limit.holds)


def check_limits(
    method: str, limits: tuple[Limit, ...], recipe: Recipe, places: Places, prefix: tuple, options: Any = None
) -> None:
    """Refuse every key of a stage that its method cannot act on.

    Args:
        recipe: the stage's, merged. prefix: where the stage stands in the recipe as written. options: its `with:`.

    Raises:
        UnsupportedError: naming the first such key and its place.
    """
    for limit in limits:
        if not limit.when(options):
            continue
        path = tuple(limit.key.split("."))
        # of all stages' value only what no stage can set for itself
        ways = [(*prefix, *path)] if limit.holds is not None else [(*prefix, *path), path]
        written = next((way for way in ways if _at(recipe.source.raw, way) is not None), None)
        if written is not None and limit.refused(_at(recipe.source.raw, written)):
            what = f"{method} cannot follow {limit.key}: {limit.why}"
            raise UnsupportedError(what, where=places.of(written), hint=limit.hint)


def _at(value: Any, path: tuple) -> Any:
    """What a recipe as written says at `path`; None where it says nothing."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value
