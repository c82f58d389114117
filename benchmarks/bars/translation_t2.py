"""English to German from scratch: a decoder-only model of at most 25M parameters against an encoder-decoder.

Trains `recipes/translation/multi30k.yaml` through the public API, then translates the 1,000 sentences of
test_2016_flickr with beam search. The peer (`translation.T2.peer`) has the same size, data and training time; each is
one command, and this bar is decided again whenever it is shown.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.captions import TEST, train_run, translate_test
from benchmarks.data import data_root, read_lines
from benchmarks.runner import RESULTS
from core.config.files import read_json

FLOOR, MARGIN, LARGEST, SECONDS = 30.0, 1.0, 25_000_000, 480
RECIPE = ROOT / "recipes" / "translation" / "multi30k.yaml"
PEER = RESULTS / "translation.T2.peer.json"
# Development scores are greedy and on a fixed part, so that choosing the checkpoint costs seconds.
OVERRIDES = ("eval.limit=400", "eval.sampling={beams: 1, max_new_tokens: 60}", "eval.max_seconds=60")
QUICK = ("train.epochs=2", "eval.every=0")


def measure(setting: Setting) -> Measured:
    from core.config.load import load_recipe

    os.environ["GRAFT_DATA"] = str(data_root())
    read_lines(f"{TEST}.en")
    start = time.perf_counter()
    overrides = [f"output={setting.work / 'run'}", *OVERRIDES, *(QUICK if setting.quick else ())]
    run, (stage,) = train_run(load_recipe(RECIPE, overrides))
    report, finished = translate_test(run, beams=5)
    return Measured(
        round(report.value("bleu"), 2),
        None,
        chance="copying the source: BLEU 0.48, chrF 16.34",
        details={
            "chrf": round(report.value("chrf"), 2),
            "ci95": [round(v, 2) for v in report.metrics["bleu"].ci95],
            "signature": report.signature["bleu"],
            "finished": finished,
            "parameters": stage["parameters"],
            "steps": stage["steps"],
            "training_seconds": stage["seconds"],
            "total_seconds": round(time.perf_counter() - start, 1),
            "chosen": stage["chosen"],
            "overrides": overrides[1:],
        },
    )


def judge(result: dict[str, Any]) -> dict[str, Any]:
    """Met with at least the floor, the size and the time kept, and no more than the margin below the peer."""
    details = result.get("details") or {}
    own = result["value"] >= FLOOR and details["parameters"] <= LARGEST and details["total_seconds"] <= SECONDS
    if not PEER.is_file():
        verdict = False if not own else None
        return {**result, "pass": verdict, "baseline": "not measured: python -m benchmarks run translation.T2.peer"}
    peer = read_json(PEER)
    if peer["value"] is None:
        return {**result, "pass": own, "baseline": peer.get("reason")}
    if not peer["pass"]:
        weak = f"{peer['value']}, too weak to count as a peer: measure translation.T2.peer again"
        return {**result, "pass": None if own else False, "baseline": weak}
    return {**result, "pass": own and result["value"] >= peer["value"] - MARGIN, "baseline": peer["value"]}


BAR = Bar(
    "translation.T2",
    "Multi30k en→de from scratch, decoder-only, test_2016_flickr",
    "BLEU",
    f"≥ {FLOOR:g} and ≥ peer − {MARGIN:g}, in {SECONDS} s",
    "gpu",
    8,
    measure,
    judge,
)
