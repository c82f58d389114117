"""Operators without end: families with parameters, words, PyTorch references and kernels that are right.

    from apps.cuda.taskgen import tasks
    for example in tasks(1000, split="train"): ...

The splits do not leak: `unseen_params` holds parameters, `unseen_paraphrase` wordings and `unseen_family` whole
families that no training task has. Everything follows from the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence

from apps.cuda.example import CudaExample
from apps.cuda.taskgen import matrices, pointwise, rows
from apps.cuda.taskgen.family import FAMILIES, Params
from core.errors import ConfigError, nearest

__all__ = ["FAMILIES", "HELD_FAMILIES", "SPLITS", "make", "members", "tasks"]

SPLITS = ("train", "unseen_params", "unseen_paraphrase", "unseen_family")
HELD_FAMILIES = frozenset({"stencil", "argmax"})
_SOURCES = (pointwise, rows, matrices)
FRAMES = (
    "Compute {does}.",
    "The kernel computes {does}.",
    "Write CUDA for: {does}.",
    "We need {does}.",
    "{does}, in CUDA C++.",
    "Implement {does}.",
)
HELD_FRAMES = frozenset({5})


def tasks(
    size: int, *, split: str = "train", seed: int = 0, families: Sequence[str] | None = None
) -> Iterator[CudaExample]:
    """`size` tasks of a split, families in turn; the same for the same seed.

    Raises:
        ConfigError: an unknown split or family.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split '{split}'", hint=f"known: {', '.join(SPLITS)}")
    for name in families or ():
        if name not in FAMILIES:
            raise ConfigError(f"unknown family '{name}'", hint=nearest(name, FAMILIES) or f"known: {list(FAMILIES)}")
    names = [n for n in families or FAMILIES if (n in HELD_FAMILIES) == (split == "unseen_family")]
    if not names:
        raise ConfigError(
            f"none of these families is in the split '{split}'", hint=f"held out: {sorted(HELD_FAMILIES)}"
        )
    draw = random.Random(f"{seed} {split}")
    pools = {name: members(name, held=split == "unseen_params") for name in names}
    names = [name for name in names if pools[name]]
    if not names:
        raise ConfigError(f"these families have no members in the split '{split}'", hint="take more families")
    for pool in pools.values():
        draw.shuffle(pool)
    frames = [i for i in range(len(FRAMES)) if (i in HELD_FRAMES) == (split == "unseen_paraphrase")]
    for number in range(size):
        name = names[number % len(names)]
        params = pools[name][number // len(names) % len(pools[name])]
        yield make(name, params, frame=draw.choice(frames), wording=draw.randrange(3), split=split)


def members(name: str, held: bool = False) -> list[Params]:
    """The parameters of a family that belong to training, or those held out: a fifth, by hash."""
    return [p for p in FAMILIES[name].members() if _held(name, p) == held]


def _held(name: str, params: Params) -> bool:
    return name not in HELD_FAMILIES and int(_key(name, params), 16) % 5 == 0


def _key(name: str, params: Params) -> str:
    return hashlib.sha256(json.dumps([name, params], sort_keys=True).encode()).hexdigest()[:8]


def make(name: str, params: Params, *, frame: int = 0, wording: int = 0, split: str = "") -> CudaExample:
    """The task of a family's member in one of its wordings."""
    built = FAMILIES[name].build(**params)
    words = FRAMES[frame].format(does=built.does[wording % len(built.does)])
    return CudaExample(
        built.reference, words[0].upper() + words[1:], built.answer, name=name, family=name, split=split,
        id=f"{name}-{_key(name, params)}-{frame}{wording}",
    )  # fmt: skip
