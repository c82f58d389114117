"""The score of written assertions: how many are valid, proved, false, vacuous, and what state the proofs depend on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from apps.rtl.assertions.check import AssertionReport, Checked, check
from apps.rtl.assertions.properties import PROPERTIES, properties
from apps.rtl.example import RtlExample
from apps.rtl.harness import reference_as_candidate
from apps.rtl.syntax import ports
from core.errors import DataError
from core.execution import ExecCache

MOST = 32
"""Assertions of one answer that are checked; each costs a simulation and up to three proofs."""

_RESETS = {"rst": 1, "reset": 1, "areset": 1, "arst": 1, "rst_i": 1, "rst_n": 0, "reset_n": 0, "rstn": 0, "resetn": 0,
           "nrst": 0, "aresetn": 0, "areset_n": 0, "rst_ni": 0}  # fmt: skip


def examples(
    size: int, *, split: str = "train", seed: int = 0, families: list[str] | None = None
) -> Iterator[RtlExample]:
    """`size` generated designs of the clocked families with the assertions that hold of them as the answer."""
    from apps.rtl.taskgen import HELD_FAMILIES, drawn

    wanted = families or [n for n in PROPERTIES if (n in HELD_FAMILIES) == (split == "unseen_family")]
    designs = drawn(2 * size, split=split, seed=seed, families=wanted)
    known = ((example, properties(name, params)) for name, params, example in designs)
    for example, texts in itertools.islice(((e, texts) for e, texts in known if texts), size):
        yield example.changed(task="assertions", answer="\n".join(texts), testbench=None, files={})


def written(answer: str) -> list[str]:
    """The assertions in an answer, in order, equal ones once. A line that starts one and ends nowhere is one, too."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", answer, flags=re.DOTALL)
    found = re.findall(r"(?:\w+\s*:\s*)?assert\s+property\b[^;]*;?", text)
    return list(dict.fromkeys(" ".join(re.sub(r"^\w+\s*:\s*", "", one).split()) for one in found))[:MOST]


def score(example: RtlExample, answer: str, *, cache: ExecCache | None = None, seconds: float = 20) -> AssertionReport:
    """Check an answer on the example's design, whose reset is known by its name.

    Raises:
        DataError: the example has no Verilog design.
    """
    if example.reference is None:
        raise DataError(f"'{example.id or example.top}' has no Verilog design to check assertions on")
    code = reference_as_candidate(example)
    reset = next(((p.name, _RESETS[p.name]) for p in ports(code, example.top) or () if p.name in _RESETS), None)
    texts = written(answer)
    if not texts:
        return AssertionReport([], None)
    try:
        return check(code, texts, top=example.top, reset=reset, cache=cache, seconds=seconds)
    except DataError as error:
        return AssertionReport([Checked(text, "invalid", error.what) for text in texts], None)
