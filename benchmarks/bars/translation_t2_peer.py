"""The peer of `translation.T2`: a Marian-configured encoder-decoder of the same size, on the same data, for as long.

It runs in a process of its own. Its time is what our training took, read from our stored result.
"""

from __future__ import annotations

import json

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.bars.translation_t2 import BAR as OURS
from benchmarks.data import data_root
from benchmarks.process import run_timed
from benchmarks.runner import RESULTS
from core.config.files import read_json

DEFAULT_SECONDS, DEFAULT_PARAMETERS, LEAST = 300, 14_000_000, 20.0


def measure(setting: Setting) -> Measured:
    ours = RESULTS / f"{OURS.id}.json"
    details = read_json(ours)["details"] if ours.is_file() else {}
    seconds = 20 if setting.quick else details.get("training_seconds", DEFAULT_SECONDS)
    parameters = details.get("parameters", DEFAULT_PARAMETERS)
    _, said = run_timed(
        *("-m", "benchmarks.peers.marian_multi30k", "--data", str(data_root() / "translation" / "multi30k")),
        *("--seconds", str(seconds), "--parameters", str(parameters)),
    )
    found = json.loads(said.strip().splitlines()[-1])
    return Measured(found.pop("bleu"), None, details={**found, "given_seconds": seconds})


def judge(result: dict) -> dict:
    """A peer that does not learn is no peer."""
    return {**result, "pass": result["value"] >= LEAST or result["quick"]}


BAR = Bar(
    "translation.T2.peer",
    "the same data, size and time with a Marian encoder-decoder",
    "BLEU",
    f"the peer of translation.T2; ≥ {LEAST:g} to count as one",
    "gpu",
    8,
    measure,
    judge,
)
