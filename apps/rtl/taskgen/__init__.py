"""Specification-to-RTL tasks without end: families with parameters, words, references, golden models and testbenches.

    from apps.rtl.taskgen import tasks
    for example in tasks(1000, split="train"): ...

The splits do not leak: `unseen_params` holds parameters, `unseen_paraphrase` wordings and `unseen_family` whole
families that no training task has. Everything follows from the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from apps.rtl.example import RtlExample
from apps.rtl.taskgen import combinational, sequential
from apps.rtl.taskgen.bench import testbench
from apps.rtl.taskgen.family import FAMILIES, Built, Params
from core.errors import ConfigError, nearest

__all__ = ["FAMILIES", "HELD_FAMILIES", "SPLITS", "make", "members", "tasks"]

SPLITS = ("train", "unseen_params", "unseen_paraphrase", "unseen_family")
HELD_FAMILIES = frozenset({"gray", "crc", "accumulator"})
TOP = "TopModule"
_SOURCES = (combinational, sequential)

FRAMES = (
    "The module {does}.",
    "Design a circuit that {does}.",
    "We need a block that {does}.",
    "{ports} The circuit {does}.",
    "Write a module that {does}. {ports}",
    "Implement hardware that {does}.",
    "{ports} Build a module that {does}.",
    "Please give me a unit that {does}. {ports}",
)
HELD_FRAMES = frozenset({6, 7})


def tasks(
    size: int, *, split: str = "train", seed: int = 0, families: Sequence[str] | None = None
) -> Iterator[RtlExample]:
    """`size` tasks of a split, families in turn; the same for the same seed.

    Raises:
        ConfigError: an unknown split or family.
    """
    for _, _, example in drawn(size, split=split, seed=seed, families=families):
        yield example


def drawn(
    size: int, *, split: str = "train", seed: int = 0, families: Sequence[str] | None = None
) -> Iterator[tuple[str, Params, RtlExample]]:
    """As `tasks`, each with its family and its parameters.

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
    pools: dict[str, list[Params]] = {}
    for name in names:
        pools[name] = members(name, held=split == "unseen_params")
        draw.shuffle(pools[name])
    frames = [i for i in range(len(FRAMES)) if (i in HELD_FRAMES) == (split == "unseen_paraphrase")]
    for number in range(size):
        name = names[number % len(names)]
        pool = pools[name]
        params = pool[number // len(names) % len(pool)]
        yield name, params, make(name, params, frame=draw.choice(frames), wording=draw.randrange(3), split=split)


def members(name: str, held: bool = False) -> list[Params]:
    """The parameters of a family that belong to training, or those held out: a fifth, by hash."""
    everything = list(FAMILIES[name].members())
    chosen = [p for p in everything if _held(name, p) == held]
    return chosen or everything


def _held(name: str, params: Params) -> bool:
    return name not in HELD_FAMILIES and int(_key(name, params), 16) % 5 == 0


def _key(name: str, params: Params) -> str:
    return hashlib.sha256(json.dumps([name, params], sort_keys=True).encode()).hexdigest()[:8]


def make(name: str, params: Params, *, frame: int = 0, wording: int = 0, split: str = "") -> RtlExample:
    """The task of a family's member in one of its wordings."""
    built = FAMILIES[name].build(params)
    key = _key(name, params)
    bench, files = testbench(built, TOP, key)
    header = built.header(TOP)
    words = FRAMES[frame].format(does=built.does[wording % len(built.does)], ports=_ports(built))
    return RtlExample(
        words.replace(" a asynchronous", " an asynchronous").strip(),
        header, TOP, f"{header}\n{built.body}endmodule\n", TOP, bench, "tb", files, family=name, split=split,
        id=f"{name}-{key}-{frame}{wording}",
    )  # fmt: skip


def _ports(built: Built) -> str:
    def listed(pins: list[Any]) -> str:
        return ", ".join(f"{p.name} ({p.width} bits)" if p.width > 1 else p.name for p in pins)

    clock = "clk, " if built.clocked else ""
    return f"Inputs: {clock}{listed(built.inputs)}. Outputs: {listed(built.outputs)}."
