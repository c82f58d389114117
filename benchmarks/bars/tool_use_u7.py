"""What keeping to the schemas is worth to a small model: the same answers, written freely and kept.

A 22M model learns calls of invented tools and is then asked for tools whose names share no syllable with those of
training. It answers every question twice, by the same pipeline: freely, and kept to the tools' schemas. What decides is
the middle one of three lengths of training; a model that has hardly learnt to call, and one that has learnt it well,
stand beside it, and so do the leaderboard's simple questions (Patil et al. 2025), whose tools are real and new as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.embedding_sets import base_model
from benchmarks.invented_apis import write_traces

LENGTHS, ROWS, ASKED = (100, 300, 900), 24000, 300
VALID, GAIN = 99.0, 10.0


def measure(setting: Setting) -> Measured:
    from apps.tool_use import load_data

    train = write_traces(setting.work / "train.jsonl", "train", 200 if setting.quick else ROWS)
    test = write_traces(setting.work / "test.jsonl", "test", 4 if setting.quick else ASKED)
    unseen = load_data(test, "traces")
    lengths = (8,) if setting.quick else LENGTHS
    runs = {steps: trained(setting, train, steps) for steps in lengths}
    found = {steps: compared(run, unseen) for steps, run in runs.items()}
    deciding = lengths[len(lengths) // 2]
    free, kept = found[deciding]["free"], found[deciding]["kept"]
    errors = {name: round(100 - found[deciding][name]["schema_valid"], 2) for name in ("free", "kept")}
    gains = {n: round(row["kept"]["ast_accuracy"] - row["free"]["ast_accuracy"], 2) for n, row in found.items()}
    details = {"steps": found, "deciding": deciding, "gains of AST accuracy": gains, "schema errors": errors}
    leaderboard = data_root() / "tool_use" / "bfcl"
    if leaderboard.is_dir() and not setting.quick:
        simple = load_data(leaderboard, "bfcl", split="simple_python", limit=200)
        details["leaderboard, simple"] = compared(runs[lengths[-1]], simple)
    valid = kept["schema_valid"] >= VALID and errors["kept"] <= errors["free"] / 2
    # A few steps of a tiny model say whether answers are kept, not what that is worth.
    met = valid and (setting.quick or gains[deciding] >= GAIN)
    return Measured(kept["ast_accuracy"], met, free["ast_accuracy"], 0.0, details)


def trained(setting: Setting, train: Path, steps: int) -> Path:
    """A run of the shipped recipe on the traces."""
    from benchmarks.captions import train_run
    from core.config.load import load_recipe

    base = base_model("tiny-7m" if setting.quick else "small-22m")
    changed = [
        f"output={setting.work}/{steps}",
        f"model.path={base}",
        "model.adapters=[]",
        f"data.train=[{{reader: traces, path: {train}}}]",
        "data.eval=[]",
        f"train.max_steps={steps}",
        "train.lr=1e-3",
        f"train.batch.size={8 if setting.quick else 64}",
        "eval.select=loss",
        "eval.metrics=[]",
        "eval.retention=false",
        "checkpoint.every=100000",
    ]
    os.environ.setdefault("GRAFT_DATA", str(data_root()))
    return train_run(load_recipe(ROOT / "recipes" / "tool_use" / "calls.yaml", changed))[0]


def compared(run: Path, examples: list[Any]) -> dict[str, dict[str, float]]:
    """The evaluator's figures in percent, of free and of kept answers."""
    from apps.tool_use import FunctionCallPipeline, ToolUseEvaluator

    found = {}
    for name, kept in (("free", False), ("kept", True)):
        with FunctionCallPipeline.from_pretrained(run, constrained=kept, most=1) as call:
            answers = [result.text for result in call.batch(examples, max_new_tokens=160, max_tokens=65536)]
        report = ToolUseEvaluator(["ast_accuracy", "tool_accuracy", "readable", "schema_valid"]).score(
            answers, examples
        )
        found[name] = {metric: round(value.value, 2) for metric, value in report.metrics.items()}
    return found


BAR = Bar(
    "tool_use.U7",
    "calls of tools that training never saw, kept to their schemas and written freely",
    "% AST accuracy",
    "kept: ≥ 99 % schema-valid, at most half the schema errors, ≥ 10 points more AST accuracy than free",
    "gpu",
    4,
    measure,
)
