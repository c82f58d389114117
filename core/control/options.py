"""The options of the edits in this package, as a recipe writes them beside `kind:`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config.schema import key


@dataclass
class ControlConfig:
    """Learning branches beside frozen blocks (Wei et al. 2025, Control LLM).

    `stack` inserts silent copies behind the chosen blocks instead (Wu et al. 2024, LLaMA Pro), `hybrid` takes turns.
    """

    num_expand: int | float = key(
        8, "blocks that get a learning copy: a number that divides the blocks, or a share of them below 1", above=0
    )
    expansion: Literal["concat", "stack", "hybrid"] = key("concat", "beside the block, behind it, or by turns")
    merge: Literal["lerp", "dlerp", "dlerpin", "slerp", "proj", "prog", "moe", "plain"] = key(
        "lerp", "how the two branches become one"
    )
    align: Literal["none", "mse", "cosine", "dot", "attention"] = key(
        "mse", "distance that keeps the branches together"
    )
    alpha: float | Literal["dynamic"] = key(1.0, "weight of the distance; dynamic takes the weight of the new branch")
    train_factor: bool = key(False, "also learn the scalar weight of the new branch")
    detach: bool = key(True, "do not move the old branch's output towards the new one")
    norm_relax: bool = key(False, "norms of the copy pass their input as its weight rises above one half")
    exact_init: bool = key(False, "start prog and proj at the identity instead of near it")


@dataclass
class LadderOptions:
    """Sub-layers that read the stream of one step before (Zhang et al. 2025)."""

    layers: int | list[int] = key(0, "the last n blocks, or a list of blocks")


@dataclass
class SkipOptions:
    """Feed-forward parts that are left out once they hardly change the stream (Jaiswal et al. 2024, FFN-SkipLLM)."""

    target_ratio: float | None = key(
        None, "share of feed-forward parts to leave out; calibrated on training text", above=0
    )
    threshold: float | None = key(None, "cosine from which on a token skips; instead of target_ratio")
    cold_start: int | None = key(None, "blocks before this one always run; null means an eighth")
    cold_end: int | None = key(None, "blocks from this one on always run; null leaves out the last eighth")
    warmup: int = key(1, "decoded tokens before skipping starts", least=0)
    max_skip: int | None = key(None, "most parts that a token leaves out", least=1)


@dataclass
class LearngeneOptions:
    """All blocks on one line in l/L, so that two blocks are trained and stored (Xia et al. 2024, TLEG)."""

    depth: int = key(12, "blocks of the auxiliary model", least=1)
    start: Literal["fresh", "fit"] = key("fresh", "random pair, or the line that is nearest to the base's blocks")


@dataclass
class DescendOptions:
    """A plain model of another depth from a trained auxiliary model, or from the line nearest to a plain one."""

    depth: int = key(12, "blocks of the descendant", least=1)
