"""The options of the edits in this package, as a recipe writes them beside `kind:`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config.schema import key
from core.errors import ConfigError


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
    teacher: str | None = key(None, "who is imitated: base, which is the base as it was, or a model of the same tokens")
    alpha: float | None = key(
        None, "weight of the divergence from the teacher, the rest is the cross-entropy's; null is 1", least=0, most=1
    )
    temperature: float | None = key(None, "of the divergence; null is 1", above=0)

    def __post_init__(self) -> None:
        for name in ("alpha", "temperature"):
            if self.teacher is None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} weighs a teacher, and there is none",
                    where=f"model.edits, learngene.{name}",
                    hint=f"add teacher: base, or take {name} out",
                )

    @property
    def ce(self) -> float:
        """Weight of the cross-entropy."""
        return 1.0 if self.teacher is None else 1.0 - self.kl

    @property
    def kl(self) -> float:
        """Weight of the divergence from the teacher's logits."""
        return 0.0 if self.teacher is None else 1.0 if self.alpha is None else self.alpha


@dataclass
class DescendOptions:
    """A plain model of another depth from a trained auxiliary model, or from the line nearest to a plain one."""

    depth: int = key(12, "blocks of the descendant", least=1)
