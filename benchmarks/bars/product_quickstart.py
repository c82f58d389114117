"""From one command to a translator that is measurably better, on two CPU cores, after installation."""

from __future__ import annotations

import sys

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.process import run_timed
from core.config.files import read_json

LIMIT = 120.0
RUN = ROOT / "runs" / "quickstart" / "42"
ARTEFACTS = ("model/adapter_config.json", "merged/config.json", "report.html")


def measure(setting: Setting) -> Measured:
    """The whole of `make quickstart`; its short form is the same, as a shorter one would not be the quickstart."""
    seconds, _ = run_timed("quickstart", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.ready", command="make")
    scores = {}
    for when in ("before", "after"):
        metrics = read_json(RUN / "eval" / when / "report.json")["metrics"]
        scores[when] = {name: round(metrics[name]["value"], 2) for name in ("bleu", "chrf")}
    missing = [name for name in ARTEFACTS if not (RUN / name).is_file()]
    better = all(scores["after"][name] > scores["before"][name] for name in ("bleu", "chrf"))
    return Measured(
        round(seconds, 1),
        seconds <= LIMIT and better and not missing,
        baseline=scores["before"],
        details={"after": scores["after"], "missing": missing},
    )


BAR = Bar(
    "product.quickstart",
    "make quickstart after installation: train, score, merge, report",
    "s",
    f"≤ {LIMIT:g} s, BLEU and chrF above the base's",
    "cpu",
    2,
    measure,
)
